"""Normalization."""

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, axes_of


def layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """gamma and beta have the shape of the axes that are normalized."""
    over = axes_of(axes, x.ndim)
    centred = x - x.mean(axis=over, keepdims=True)
    made = centred / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + float(epsilon))
    return _affine(made, gamma, beta, [size if axis in over else 1 for axis, size in enumerate(x.shape)])


def instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5) -> Array:
    """x [rows, channels, ...]; gamma and beta [channels]."""
    normal = layer_norm(x, np.arange(2, x.ndim), epsilon=epsilon)
    return _affine(normal, gamma, beta, [1, x.shape[1], *[1] * (x.ndim - 2)])


def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """x [rows, channels, ...]; the others [channels]."""
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    normal = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + float(epsilon))
    return _affine(normal, gamma, beta, shape)


def _affine(x: Array, gamma: Array | None, beta: Array | None, shape: list[int]) -> Array:
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


OPS: Family = {"layer_norm": layer_norm, "instance_norm": instance_norm, "batch_norm": batch_norm}
