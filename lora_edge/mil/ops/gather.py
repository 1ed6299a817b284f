"""Looking values up by index."""

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, axes_of, fits
from lora_edge.mil.types import Shape


def _inside(indices: Array, size: int) -> Array:
    """Core ML leaves open what an index outside gives; here it is refused."""
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise ValueError(f"indices from {indices.min()} to {indices.max()} into {size}")
    return indices


def gather(
    x: Array,
    indices: Array,
    axis: Array | int = 0,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    along = axes_of(np.asarray(axis), x.ndim)[0]
    shared = int(batch_dims)
    if not 0 <= shared <= min(along, indices.ndim) or x.shape[:shared] != indices.shape[:shared]:
        raise ValueError(f"{shared} shared axes of {list(x.shape)} and {list(indices.shape)}")
    fits(declared, (*x.shape[:along], *indices.shape[shared:], *x.shape[along + 1 :]))
    _inside(indices, x.shape[along])
    if not shared:
        return np.take(x, indices, axis=along)
    made = np.empty(declared[0], x.dtype)
    for row in np.ndindex(x.shape[:shared]):
        made[row] = np.take(x[row], indices[row], axis=along - shared)
    return made


def gather_along_axis(x: Array, indices: Array, axis: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    along = axes_of(np.asarray(axis), x.ndim)[0]
    return np.take_along_axis(x, _inside(indices, x.shape[along]), axis=along)


def gather_nd(
    x: Array,
    indices: Array,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    """indices [..., k] name places on the first k axes of x."""
    if int(batch_dims):
        raise ValueError("shared axes are not evaluated here")
    depth = indices.shape[-1]
    fits(declared, (*indices.shape[:-1], *x.shape[depth:]))
    return np.asarray(x[tuple(_inside(indices[..., axis], x.shape[axis]) for axis in range(depth))])


def one_hot(
    indices: Array,
    one_hot_vector_size: Array,
    axis: Array | int = -1,
    on_value: Array | int = 1,
    off_value: Array | int = 0,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    size, at = int(one_hot_vector_size), int(axis) % (indices.ndim + 1)
    fits(declared, (*indices.shape[:at], size, *indices.shape[at:]))
    places = np.arange(size).reshape(-1, *[1] * (indices.ndim - at))
    return np.where(np.expand_dims(indices, at) == places, on_value, off_value)


OPS: Family = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "one_hot": one_hot,
}
