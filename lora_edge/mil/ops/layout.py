"""Operations that move numbers and compute none: shapes, slices, joins, paddings, fillings."""

import math
from collections.abc import Mapping

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, axes_of, fits, flag, ints
from lora_edge.mil.types import Shape


def reshape(x: Array, shape: Array, *, declared: tuple[Shape, ...]) -> Array:
    """-1 stands for what is left over, 0 for the size that x has there."""
    wanted = [x.shape[axis] if size == 0 and axis < x.ndim else size for axis, size in enumerate(ints(shape))]
    known = math.prod(size for size in wanted if size != -1)
    fits(declared, [x.size // max(1, known) if size == -1 else size for size in wanted])
    return x.reshape(declared[0])


def transpose(x: Array, perm: Array) -> Array:
    return x.transpose(ints(perm))


def expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(ints(axes)))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else axes_of(axes, x.ndim))


def concat(
    values: list[Array], axis: Array | int, interleave: Array | bool = False, *, declared: tuple[Shape, ...]
) -> Array:
    along = axes_of(np.asarray(axis), values[0].ndim)[0]
    shape = list(values[0].shape)
    shape[along] = sum(value.shape[along] for value in values)
    fits(declared, shape)
    if flag(interleave):
        return np.stack(values, axis=along + 1).reshape(declared[0])
    return np.concatenate(values, axis=along)


def stack(values: list[Array], axis: Array | int, *, declared: tuple[Shape, ...]) -> Array:
    at = int(axis) % (values[0].ndim + 1)
    fits(declared, (*values[0].shape[:at], len(values), *values[0].shape[at:]))
    return np.stack(values, axis=at)


def split(
    x: Array, axis: Array | int, num_splits: Array | None = None, split_sizes: Array | None = None
) -> list[Array]:
    along = axes_of(np.asarray(axis), x.ndim)[0]
    if split_sizes is None:
        return np.split(x, ints(num_splits)[0], axis=along)
    sizes = ints(split_sizes)
    if min(sizes) < 0 or sum(sizes) != x.shape[along]:
        raise ValueError(f"{x.shape[along]} cut into {sizes}")
    return np.split(x, np.cumsum(sizes)[:-1], axis=along)


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """begin : end : stride for each axis; masks say whose begin or end is the axis' own, and which axis goes."""
    rank = x.ndim
    none = [0] * rank
    columns = (ints(begin), ints(end), ints(stride, [1] * rank), ints(begin_mask, none), ints(end_mask, none),
               ints(squeeze_mask, none))  # fmt: skip
    places: list[slice | int] = [
        start if only else slice(None if from_start else start, None if to_end else stop, step)
        for start, stop, step, from_start, to_end, only in zip(*columns, strict=True)
    ]
    if len(places) != rank:
        raise ValueError(f"{len(places)} slices of {rank} axes")
    return np.asarray(x[tuple(places)])


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A size of -1 goes to the end."""
    told = zip(ints(begin), ints(size), x.shape, strict=True)
    return x[tuple(slice(start, whole if count == -1 else start + count) for start, count, whole in told)]


PAD_MODES: Mapping[str, str] = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def pad(
    x: Array,
    pad: Array,
    mode: str = "constant",
    constant_val: Array | float = 0.0,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    """pad: before and after, for the last axes."""
    told = ints(pad)
    pairs = list(zip(told[::2], told[1::2], strict=True))
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if min(told, default=0) < 0:
        raise ValueError(f"a negative padding {told}")
    fits(declared, [size + before + after for size, (before, after) in zip(x.shape, pairs, strict=True)])
    how = PAD_MODES[mode]
    if how == "constant":
        return np.pad(x, pairs, constant_values=np.asarray(constant_val).astype(x.dtype).item())
    return np.pad(x, pairs, mode=how)  # type: ignore[call-overload, no-any-return]


def tile(x: Array, reps: Array, *, declared: tuple[Shape, ...]) -> Array:
    fits(declared, [size * times for size, times in zip(x.shape, ints(reps), strict=True)])
    return np.tile(x, ints(reps))


def fill(shape: Array, value: Array | float = 0.0, *, declared: tuple[Shape, ...]) -> Array:
    fits(declared, ints(shape))
    return np.full(declared[0], value)


def fill_like(ref_tensor: Array, value: Array | float = 0.0) -> Array:
    return np.full(ref_tensor.shape, value)


def range_1d(start: Array, end: Array, step: Array, *, declared: tuple[Shape, ...]) -> Array:
    fits(declared, [max(0, math.ceil((end.item() - start.item()) / step.item()))])
    return (start + step * np.arange(declared[0][0])).astype(np.result_type(start, step))


def shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


def reverse(x: Array, axes: Array | None = None) -> Array:
    return np.flip(x, axes_of(axes, x.ndim))


def band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    """Keep the diagonals from `lower` below to `upper` above; -1 keeps all of that side."""
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    below, above = int(lower), int(upper)
    keep = ((below < 0) | (rows - columns <= below)) & ((above < 0) | (columns - rows <= above))
    return np.where(keep, x, x.dtype.type(0))


def upsample_nearest_neighbor(
    x: Array,
    scale_factor_height: Array | float = 1,
    scale_factor_width: Array | float = 1,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    """x [rows, channels, height, width]; whole factors."""
    down, across = float(scale_factor_height), float(scale_factor_width)
    if not (down.is_integer() and across.is_integer() and min(down, across) >= 1):
        raise ValueError(f"only whole factors are evaluated, and these are {down} and {across}")
    fits(declared, (*x.shape[:-2], x.shape[-2] * int(down), x.shape[-1] * int(across)))
    return x.repeat(int(down), axis=-2).repeat(int(across), axis=-1)


def resize_nearest_neighbor(
    x: Array, target_size_height: Array, target_size_width: Array, *, declared: tuple[Shape, ...]
) -> Array:
    sizes = (int(target_size_height), int(target_size_width))
    fits(declared, (*x.shape[:-2], *sizes))
    rows, columns = (np.arange(size) * whole // size for size, whole in zip(sizes, x.shape[-2:], strict=True))
    return x[..., rows[:, None], columns]


OPS: Family = {
    "reshape": reshape,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "concat": concat,
    "stack": stack,
    "split": split,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "pad": pad,
    "tile": tile,
    "fill": fill,
    "fill_like": fill_like,
    "range_1d": range_1d,
    "shape": shape,
    "reverse": reverse,
    "band_part": band_part,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "resize_nearest_neighbor": resize_nearest_neighbor,
}
