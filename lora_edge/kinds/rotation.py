"""What OFT and BOFT share: blocks of free numbers that become rotations, and the change that those make of a weight.

With Q = blocks - blocks^T the rotation is R = (I + Q)(I - Q)^-1 (Cayley; Qiu et al. 2023), so R - I = 2 Q (I - Q)^-1,
which loses no digits where R is near I. alpha is no scale here but the constraint of COFT: a |Q| (of all blocks
together) beyond alpha * out is brought back to it (LyCORIS functional/diag_oft.py, get_r).
"""

import math

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import chunks, finite, lowrank, transposed, whole
from lora_edge.kinds.kind import Update
from lora_edge.kinds.scale import number

EXACT = 512  # up to this size of a block float64 costs little


def turns(update: Update, blocks: Array) -> FloatArray:
    """R - I of every block; blocks: [..., n, n].

    Raises:
        AdapterValueError: the blocks are too large for float32.
    """
    n = blocks.shape[-1]
    dtype = np.dtype(np.float64 if n <= EXACT else np.float32)
    flat = blocks.reshape(-1, n, n)
    shrink = _shrink(update, flat)
    made = np.empty(flat.shape, np.float32)
    for part in chunks(len(flat), n * n):
        skew: Array = flat[part].astype(dtype)
        skew -= flat[part].swapaxes(1, 2)
        skew *= shrink
        twice = 2 * skew
        np.negative(skew, out=skew)
        skew[:, range(n), range(n)] += 1  # I - Q
        try:
            made[part] = np.linalg.solve(skew, twice)
        except np.linalg.LinAlgError:  # Q so large that I is lost beside it
            made[part] = np.nan
    finite("a rotation", made)
    return made.reshape(blocks.shape)


def _shrink(update: Update, blocks: Array) -> float:
    """What the constraint multiplies Q by; an alpha of 0 switches it off, but for kohya's own OFT, which it stops."""
    alpha = number("alpha", update.tensors["alpha"]) if "alpha" in update.tensors else 0.0
    if alpha <= 0:
        return 0.0 if alpha == 0 and "alpha" in update.tensors and update.name.startswith("oft_") else 1.0
    squares = 0.0
    for part in chunks(len(blocks), blocks.shape[-1] ** 2):
        skew = blocks[part].astype(np.float64) - blocks[part].swapaxes(1, 2)
        squares += float(np.einsum("kij,kij->", skew, skew))
    return min(1.0, alpha * update.shape[0] / max(math.sqrt(squares), 1e-30))


def rotated(update: Update, weight: FloatArray, change: FloatArray) -> LowRank:
    """The form of a rotation, and of the rescaling of the rows after it where the file has one.

    Args:
        update: the layer; `rescale` [out, 1, ...] multiplies the rows of the rotated weight.
        weight: the base's, [out, ...].
        change: what the rotation adds to it, [patch, out]; overwritten.
    """
    if "rescale" in update.tensors:
        gain = update.tensors["rescale"].astype(np.float32).reshape(-1)
        change *= gain
        change += transposed(weight, len(weight)) * (gain - 1)
    return lowrank(whole(change), 1.0)
