"""What a slot computes in torch, and how arrays get to the device.

While nothing changes a slot it is the plain layer, so that one that no adapter touches costs nothing. Else:

    y = ((x * gain_in) @ W) * gain_out + ((x @ down) * scale) @ up + bias + lora_bias
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lora_edge.arrays import Array
from lora_edge.slots import Slot


@dataclass
class Update:
    """What adapters change in one slot, as the contract has it; None changes nothing.

    Attributes:
        down, up, scale: all three, or none; scale is [rows or 1, lanes].
    """

    down: Tensor | None = None
    up: Tensor | None = None
    scale: Tensor | None = None
    gain_in: Tensor | None = None
    gain_out: Tensor | None = None
    bias: Tensor | None = None


class _Layer(Protocol):
    def __call__(self, update: Update, slot: Slot, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        """The changed layer; how: what else the plain one is called with."""


def layer(plain: Callable[..., Tensor], changed: _Layer, slot: Slot | None, updates: Mapping[str, Update]) -> Any:
    """A layer that looks, each time, whether its slot is among the updates.

    Its input is rounded to the type of its weight, so that what is computed in float32 on purpose (the features of a
    timestep) is so until here.
    """
    if slot is None:
        return lambda x, weight, *rest: plain(x.to(weight.dtype), weight, *rest)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any) -> Tensor:
        update = updates.get(slot.name)
        x = x.to(weight.dtype)
        return plain(x, weight, bias, *how) if update is None else changed(update, slot, x, weight, bias, *how)

    return run


def linear(update: Update, slot: Slot, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """x: [rows, ..., in]; weight: [out, in]."""
    bias = _sum(bias, update.bias)
    down, up, scale = update.down, update.up, update.scale
    # Where the weight is the smaller side; in half precision it would round small changes away.
    if slot.placement == "weight" and scale is not None and len(scale) == 1 and weight.dtype == torch.float32:
        assert down is not None and up is not None
        base = _times(weight.t(), update.gain_in, (-1, 1))
        return functional.linear(x, torch.addmm(_times(base, update.gain_out, (-1,)), down * scale, up).t(), bias)
    made = _base(functional.linear, update, (-1,), x, weight, bias)
    if scale is not None:
        assert down is not None and up is not None
        lanes = (x @ down) * scale.reshape(len(scale), *(1,) * (x.dim() - 2), -1)
        made = made.flatten(0, -2).addmm_(lanes.flatten(0, -2), up).view(made.shape)
    return made


def conv(update: Update, slot: Slot, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """x: [rows, in, height, width]; weight: [out, in, kh, kw]; how: stride, padding, dilation."""
    made = _base(functional.conv2d, update, (-1, 1, 1), x, weight, _sum(bias, update.bias), *how)
    if update.scale is not None:
        assert update.down is not None and update.up is not None
        down = update.down.t().reshape(-1, *weight.shape[1:])
        lanes = functional.conv2d(x, down, None, *how) * update.scale[:, :, None, None]
        made += functional.conv2d(lanes, update.up.t()[:, :, None, None])
    return made


def _base(
    plain: Callable[..., Tensor],
    update: Update,
    channels: tuple[int, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *how: Any,
) -> Tensor:
    """The layer without lanes; channels: how a vector of channels is shaped to meet x."""
    x = _times(x, update.gain_in, channels)
    if update.gain_out is None:
        return plain(x, weight, bias, *how)
    made = plain(x, weight, None, *how) * update.gain_out.reshape(channels)
    return made if bias is None else made.add_(bias.reshape(channels))


def _times(x: Tensor, gain: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return x if gain is None else x * gain.reshape(shape)


def _sum(bias: Tensor | None, more: Tensor | None) -> Tensor | None:
    return bias if more is None else more if bias is None else bias + more


class Carrier:
    """Takes arrays to a device.

    Arrays of adapters that have to be copied are copied once and stay for as long as the array lives, so that a style
    that is in use, or at hand, is on the device already. Nobody writes into such arrays.

    Args:
        device: where to.
        dtype: of weights and adapters there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._copies: dict[int, tuple[weakref.ref[Array], Tensor]] = {}

    def plain(self, array: Array) -> Tensor:
        """In its own type."""
        return _shared(array).to(self.device)

    def weight(self, array: Array) -> Tensor:
        """Numbers in the type of the weights, integers in their own."""
        tensor = _shared(array)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def adapter(self, array: Array) -> Tensor:
        """As `weight`, kept."""
        key, copies = id(array), self._copies
        if key in copies and copies[key][0]() is array:
            return copies[key][1]
        tensor = _shared(array)
        copied = tensor.to(self.device, self.dtype)
        if copied is not tensor:

            def forget(gone: object) -> None:
                copies.pop(key, None)

            copies[key] = weakref.ref(array, forget), copied
        return copied


def _shared(array: Array) -> Tensor:
    """The same memory; an array that is read-only is so, as nothing here writes into what it is fed."""
    return torch.from_numpy(array)


def _silence() -> None:
    """torch warns of the first read-only array that it sees, and of that one only."""
    import warnings

    still = np.zeros(1)
    still.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(still)


_silence()


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *how: Any, **more: Any) -> Tensor:
    """Fused attention; a mask of numbers has to be of the type of what it masks."""
    mask = mask.to(query.dtype) if mask is not None and mask.is_floating_point() else mask
    return functional.scaled_dot_product_attention(query, key, value, mask, *how, **more)


def embedded(weight: Tensor, ids: Tensor, added: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Rows of an embedding, with those of added tokens put in.

    Args:
        weight: [vocabulary, dim].
        ids: [rows, tokens] int64.
        added: which places [rows, tokens, 1], which row of the added table there [rows, tokens], the table [n, dim].
    """
    made = functional.embedding(ids, weight)
    for where, rows, table in added:
        made = torch.where(where, functional.embedding(rows, table), made)
    return made
