"""Norms that half precision can hold: the Neural Engine has no other, and ends at 65504, the square of 256.

    c = x - mean    s = max |c| + sqrt(eps)    norm = (c / s) / sqrt(mean (c / s)^2 + eps / s^2)

is the norm as it always was, but nothing that is squared is larger than 1, whatever x is, and neither term is lost
where it counts: eps / s^2 is 1 where x is constant, and vanishes where the variance is far above eps.
"""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def normalized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Mean 0 and variance 1 over the axes."""
    root = float(eps**0.5)
    centred = x - x.mean(dim=axes, keepdim=True)
    shrink = (centred.abs().amax(dim=axes, keepdim=True) + root).reciprocal()
    small = centred * shrink
    floor = root * shrink
    return small * ((small * small).mean(dim=axes, keepdim=True) + floor * floor).rsqrt()


class ChannelNorm(nn.Module):
    """A LayerNorm over the second axis of [rows, channels, 1, tokens]."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x, (1,), self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


class GroupNorm(nn.Module):
    """A GroupNorm of [rows, channels, ...]."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        # The last axis stays apart: the Neural Engine takes no axis longer than 16384.
        groups = x.reshape(x.shape[0], self.groups, -1, x.shape[-1])
        weight, bias = (tensor.reshape(-1, *[1] * (x.dim() - 2)) for tensor in (self.weight, self.bias))
        return normalized(groups, (2, 3), self.eps).reshape(x.shape) * weight + bias


def shared_copy(module: Module) -> Module:
    """A copy whose layers can be replaced; weights are those of the module given."""
    memory: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memory)


def half_norms(module: Module) -> Module:
    """The module itself, every GroupNorm in it replaced."""
    for path, layer in list(module.named_modules()):
        if isinstance(layer, nn.GroupNorm):
            module.set_submodule(path, GroupNorm(layer))
    return module
