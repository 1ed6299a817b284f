"""LoRA and LoCon: dW = scale * up @ down, for a Conv over its unfolded patches (Hu et al. 2021; kohya, LyCORIS).

A Conv's `down` has the layer's kernel and `up` is 1x1. With `mid` (Tucker, LyCORIS functional/locon.py) `down` is 1x1
as well and the kernel lies between: dW[o,i,h,w] = scale * sum_pq up[o,p] mid[p,q,h,w] down[q,i].
"""

import math

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.kind import Kind, Shapes, Update
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of

DOWN = (
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.*.weight",
    "lora.down.weight",
    "lora_linear_layer.down.weight",
    "down.weight",
)
UP = (
    "lora_up.weight",
    "lora_B.weight",
    "lora_B.*.weight",
    "lora.up.weight",
    "lora_linear_layer.up.weight",
    "up.weight",
)


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank with the lanes of the file.

    Raises:
        AdapterMismatch: a factor is missing, or its shape is not the layer's.
    """
    down, up = update.tensor("down"), update.tensor("up")
    rank = down.shape[0] if down.ndim else 0
    if rank == 0:
        raise AdapterMismatch(f"has a down of shape {list(down.shape)}, which has no rank")
    scale = scale_of(update, rank)
    if len(update.shape) < 2:
        raise AdapterMismatch("is a norm, which has no low-rank update")
    if "mid" in update.tensors:
        down = _fold(update.tensors["mid"], down, max(update.shape[0], math.prod(update.shape[1:])))
    lanes, out = down.shape[0], update.shape[0]
    for leaf, factor, wanted in (("down", down, (lanes, *update.shape[1:])), ("up", up, (out, lanes))):
        if not _same(factor.shape, wanted):
            raise AdapterMismatch(f"has {leaf} {list(factor.shape)} where the layer and its rank need {list(wanted)}")
    return (LowRank(_transposed(down, lanes), _transposed(up, out), scale),)


def rank(shapes: Shapes) -> int | None:
    """Rows of `down`."""
    return shapes["down"][0] if shapes.get("down") else None


def _fold(mid: Array, down: Array, most: int) -> Array:
    """[p, q, kh, kw] and [q, in(, 1, 1)] -> [p, in, kh, kw]: the kernel moved into `down`.

    The product is larger than what the file holds, so p is bounded by the most lanes that any layer can use.
    """
    if down.ndim < 2 or mid.ndim != 4 or mid.shape[1] != down.shape[0] or not _same(down.shape, down.shape[:2]):
        raise AdapterMismatch(f"has a mid of shape {list(mid.shape)} that does not follow its down {list(down.shape)}")
    if mid.shape[0] > most:
        raise AdapterMismatch(f"has a mid of shape {list(mid.shape)}, more lanes than the layer's {most}")
    folded: Array = np.einsum("pqhw,qi->pihw", mid, down.reshape(down.shape[:2]), optimize=True)
    return folded


def _same(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal but for axes of length 1 after the first, or with all axes after the first in one.

    Files give a Linear layer 1x1 kernels and a 1x1 Conv none, according to the trainer's own model.
    """
    tail, wanted_tail = ([axis for axis in axes[1:] if axis != 1] for axes in (shape, wanted))
    flat = math.prod(wanted[1:])
    return shape[:1] == wanted[:1] and (tail == wanted_tail or shape[1:] == (flat,))


def _transposed(factor: Array, rows: int) -> FloatArray:
    """[rows, ...] -> [the rest, rows], float32, in memory of its own."""
    return np.array(factor.reshape(rows, -1).T, np.float32, order="C")


LORA = Kind(
    name="lora",
    spellings={"down": DOWN, "up": UP, "mid": ("lora_mid.weight",), **SCALE_LEAVES},
    signature=frozenset({"down", "up"}),
    form=form,
    rank=rank,
)
