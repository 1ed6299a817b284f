"""Weights that are stored compressed."""

import math

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.blob import unpack
from lora_edge.mil.ops.shapes import Family, fits, ints
from lora_edge.mil.types import Shape


def constexpr_lut_to_dense(
    indices: Array,
    lut: Array,
    shape: Array | None = None,
    vector_axis: Array | None = None,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    """A palette and indices into it.

    iOS16: `lut` [palette], `indices` packed into bytes, `shape` of the weight. iOS18: `indices` in the weight's shape,
    `lut` [groups of each axis ..., palette, vector]; a vector lies along `vector_axis`.
    """
    if shape is not None:
        fits(declared, ints(shape))
        bits, count = int(len(lut)).bit_length() - 1, math.prod(declared[0])
        if len(lut) != 1 << bits or not 1 <= bits <= 8 or len(indices) != -(-count * bits // 8):
            raise ValueError(f"{len(indices)} bytes of indices into a palette of {len(lut)}")
        made: Array = lut[unpack(indices, bits, count)]
        return made.reshape(declared[0])
    groups = lut.shape[: indices.ndim]
    if lut.ndim != indices.ndim + 2 or any(size % parts for size, parts in zip(indices.shape, groups, strict=True)):
        raise ValueError(f"a palette {list(lut.shape)} for indices {list(indices.shape)}")
    axis = 0 if vector_axis is None else int(vector_axis) % indices.ndim
    made_shape = list(indices.shape)
    made_shape[axis] *= lut.shape[-1]
    fits(declared, made_shape)
    places = np.ogrid[tuple(slice(size) for size in indices.shape)]
    group = [place // (size // parts) for place, size, parts in zip(places, indices.shape, groups, strict=True)]
    vectors: Array = lut[(*group, indices)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(declared[0])


OPS: Family = {"constexpr_lut_to_dense": constexpr_lut_to_dense}
