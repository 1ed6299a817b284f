"""torch layers with another weight than their own, for as long as they run: what adapters make of it, or float32."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lora_edge.forms import Form, Gain, LowRank

BLOCK = 1 << 20  # float64 elements of a weight that are computed at a time: 8 MB


@contextlib.contextmanager
def changed_while_used(layer: nn.Module, changed: Callable[[], Tensor]) -> Iterator[None]:
    """Give a layer another weight for the time of its own forward: two models' weights would not fit into memory."""
    parameter = layer.weight
    base = parameter.data

    def before(*_: object) -> None:
        parameter.data = changed()

    def after(*_: object) -> None:
        parameter.data = base

    handles = (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def changed_weight(weight: Tensor, forms: Sequence[tuple[float, Form]], room: Tensor) -> Tensor:
    """W' of `lora_edge.forms`, computed in float64 and rounded once to float32.

    A few output channels at a time, since float64 of a large weight leaves the processor's cache. The result lies in
    `room`, [at least as many elements] float32, since fresh memory for every layer takes longer than what is computed.
    """
    flat = weight.reshape(len(weight), -1)
    made = room[: flat.numel()].reshape(flat.shape)
    if not forms:
        return made.copy_(flat).reshape(weight.shape)
    lanes = [(m * form.scale, form) for m, form in forms if isinstance(form, LowRank)]
    down = torch.cat([torch.from_numpy(form.down) for _, form in lanes], 1).double().T  # [lanes, patch]
    up = torch.cat([m * torch.from_numpy(form.up).double() for m, form in lanes]).T  # [out, lanes]
    excess = {"in": torch.zeros(1, len(weight[0]), dtype=torch.float64), "out": torch.zeros(len(weight), 1)}
    for m, form in forms:
        if isinstance(form, Gain):
            change = m * (torch.from_numpy(form.values).double() - 1)
            excess[form.axis] = excess[form.axis] + change.reshape(excess[form.axis].shape)
    patch = excess["in"].repeat_interleave(weight[0, 0].numel(), 1)
    gained = any(isinstance(form, Gain) for _, form in forms)
    step = max(1, BLOCK // flat.shape[1])
    for start in range(0, len(flat), step):
        at = slice(start, start + step)
        block = flat[at].double()
        if gained:
            block *= 1 + patch + excess["out"][at]
        made[at] = block.addmm_(up[at], down)
    return made.reshape(weight.shape)
