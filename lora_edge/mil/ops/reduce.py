"""Reductions over axes, and running sums."""

from collections.abc import Callable

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, Op, axes_of, flag
from lora_edge.mil.types import BY_NAME

REDUCTIONS: dict[str, Callable[..., Array]] = {
    "reduce_mean": np.mean,
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum_square": lambda x, **how: np.square(x).sum(**how),
    "reduce_l2_norm": lambda x, **how: np.sqrt(np.square(x).sum(**how)),
}


def _reduction(function: Callable[..., Array]) -> Op:
    def apply(x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
        return function(x, axis=axes_of(axes, x.ndim), keepdims=flag(keep_dims))

    return apply


def _place(function: Callable[..., Array]) -> Op:
    def apply(x: Array, axis: Array | int = -1, keep_dims: Array | bool = False, output_dtype: str = "int32") -> Array:
        return function(x, axis=int(axis), keepdims=flag(keep_dims)).astype(BY_NAME[output_dtype].dtype)

    return apply


def cumsum(x: Array, axis: Array | int = 0, exclusive: Array | bool = False, reverse: Array | bool = False) -> Array:
    way = slice(None, None, -1) if flag(reverse) else slice(None)
    ahead = np.moveaxis(x, int(axis), 0)[way]
    made = np.cumsum(ahead, axis=0, dtype=x.dtype)
    made = made - ahead if flag(exclusive) else made
    return np.moveaxis(made[way], 0, int(axis))


OPS: Family = {
    **{name: _reduction(function) for name, function in REDUCTIONS.items()},
    "reduce_argmax": _place(np.argmax),
    "reduce_argmin": _place(np.argmin),
    "cumsum": cumsum,
}
