"""A torch module with slots: its layers add the lanes of a bucket that come in as inputs.

    y = base(x) + ((x @ down) * lora_scale) @ up

Hooks add them, so the module's own layers and weights stay as they are while it is traced.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lora_edge.export.coreml.ports import Pair


class Slotted(nn.Module):
    """A module whose forward takes `required` inputs, then lora_scale [R], then down and up of each pair in turn.

    Args:
        module: what the inputs go to.
        layers: slot name -> the layer of `module` that it is.
        pairs: shapes and order of the lanes.
        required: number of inputs of `module`.
    """

    def __init__(self, module: nn.Module, layers: dict[str, nn.Module], pairs: Sequence[Pair], required: int) -> None:
        super().__init__()
        self.module = module
        self._taking = [layers[pair.slot.name] for pair in pairs]
        self._required = required

    def forward(self, *tensors: Tensor) -> Any:
        inputs, scale, lanes = tensors[: self._required], tensors[self._required], tensors[self._required + 1 :]
        with ExitStack() as hooks:
            for layer, (down, up) in zip(self._taking, _pairs(lanes), strict=True):
                hooks.callback(layer.register_forward_hook(_adds(down, up, scale)).remove)
            return self.module(*inputs)


def _pairs(lanes: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(lanes[::2], lanes[1::2], strict=True)


def _adds(down: Tensor, up: Tensor, scale: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, args: tuple[Any, ...], base: Tensor) -> Tensor:
        x: Tensor = args[0]
        if not isinstance(layer, nn.Conv2d):
            return base + ((x @ down) * scale) @ up
        image = x if x.dim() == 4 else x[:, :, None, None]
        narrow = F.conv2d(image, down, stride=layer.stride, padding=layer.padding)
        return base + F.conv2d(narrow * scale[:, None, None], up).reshape(base.shape)

    return hook
