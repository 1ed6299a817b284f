"""Factor pairs: how every kind's product becomes one LowRank, exactly and with few lanes.

A pair is (down [patch, lanes], up [lanes, out]), float32; down @ up is the change of the weight, transposed. Whatever
is made here is bounded by the layer's own weight, however many lanes a file pretends to have.
"""

import math

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterValueError
from lora_edge.forms import LowRank
from lora_edge.kinds.kind import Layer

Pair = tuple[FloatArray, FloatArray]

CHUNK = 1 << 18  # numbers of a temporary array, so that it stays in a processor's cache


def full(layer: Layer) -> int:
    """Lanes of any change of a layer in its whole form: the smaller side of the weight."""
    return min(layer[0], math.prod(layer[1:]))


def transposed(factor: Array, rows: int) -> FloatArray:
    """[rows, ...] -> [the rest, rows], float32, a view where it can be one."""
    return flat(factor, rows).T


def flat(factor: Array, rows: int) -> FloatArray:
    """[rows, ...] -> [rows, the rest], float32."""
    return np.ascontiguousarray(factor.reshape(rows, -1), np.float32)


def whole(change: FloatArray) -> Pair:
    """A change [patch, out] of any rank: itself, with the identity on the smaller side."""
    patch, out = change.shape
    if out <= patch:
        return change, np.eye(out, dtype=np.float32)
    return np.eye(patch, dtype=np.float32), change


def product(down: FloatArray, up: FloatArray) -> Pair:
    """The pair itself, multiplied out where it has more lanes than the smaller side of what it makes."""
    return (down, up) if len(up) <= min(len(down), up.shape[1]) else whole(down @ up)


def tucker(core: Array, down: FloatArray, up: FloatArray) -> Pair:
    """sum_pq up[p, out] core[p, q, kh, kw] down[q, in], with the kernel moved into `down`: min(p, out) lanes."""
    planes = core.reshape(*core.shape[:2], -1)
    if up.shape[1] < len(core):
        planes = (up.T @ flat(core, len(core))).reshape(up.shape[1], *planes.shape[1:])
        up = np.eye(up.shape[1], dtype=np.float32)
    made: FloatArray = np.empty((down.shape[1], planes.shape[2], len(planes)), np.float32)
    for place in range(planes.shape[2]):  # one by one, as all planes at once would be copied
        made[:, place] = down.T @ planes[:, :, place].T
    return made.reshape(-1, len(planes)), up


def kron(first: Pair, second: Pair) -> Pair:
    """The Kronecker product of two changes is the product of the Kronecker products of their factors."""
    down, up = (kron_matrix(a, b) for a, b in zip(first, second, strict=True))
    return down, up


def kron_matrix(a: FloatArray, b: FloatArray) -> FloatArray:
    """[m, n] and [p, q] -> [m * p, n * q]."""
    together: FloatArray = a[:, None, :, None] * b[None, :, None, :]
    return together.reshape(len(a) * len(b), -1)


def khatri_rao(first: Pair, second: Pair) -> Pair:
    """The elementwise product of two changes: lane (p, q) is the product of lane p and lane q."""
    down = (first[0][:, :, None] * second[0][:, None, :]).reshape(len(first[0]), -1)
    up = (first[1][:, None, :] * second[1][None, :, :]).reshape(-1, first[1].shape[1])
    return down, up


def hadamard(first: Pair, second: Pair) -> FloatArray:
    """The elementwise product of two changes, [patch, out]."""
    change: FloatArray = first[0] @ first[1]
    for rows in chunks(*change.shape):
        change[rows] *= second[0][rows] @ second[1]
    return change


def chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows of which none holds many more numbers than CHUNK."""
    step = max(1, CHUNK // max(columns, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


def lowrank(pair: Pair, scale: float) -> LowRank:
    """The pair as a form.

    Raises:
        AdapterValueError: a product of the file's numbers is beyond float32.
    """
    finite("a product of its factors", *pair)
    return laid_out(pair, scale)


def laid_out(pair: Pair, scale: float) -> LowRank:
    """The pair as a form, each factor in one piece of memory."""
    down, up = (np.ascontiguousarray(factor) for factor in pair)
    return LowRank(down, up, scale)


def finite(what: str, *arrays: Array) -> None:
    """Refuse what a calculation has driven beyond float32; the largest and the smallest number tell.

    Raises:
        AdapterValueError: there is a NaN or an infinity.
    """
    for array in arrays:
        if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            raise AdapterValueError(f"makes {what} that is not finite; the file is broken")
