"""GLoRA (Chavan et al. 2023; LyCORIS modules/glora.py): dW = scale * (W a1 a2 + b1 b2), A acting on input channels.

Files of LyCORIS before 3 swap 1 and 2, and are told by their shapes, as in ComfyUI. W a1 is computed once, so that what
is left is LowRank: as many lanes as A and B have, A's for each place of a kernel.
"""

import math

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import chunks, flat, full, kron_matrix, lowrank, transposed, whole
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, expect, need, weight_only
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of

LEAVES = ("a1", "a2", "b1", "b2")
OLD = ("a2", "a1", "b2", "b1")  # what files of LyCORIS before 3 call them


def _named(shapes: Shapes, layer: Layer) -> dict[str, str]:
    """a1, a2, b1, b2 of the formula -> leaf of the file."""
    need(shapes, *LEAVES)
    if any(len(shapes[leaf]) < 2 or 0 in shapes[leaf] for leaf in LEAVES):
        raise AdapterMismatch("has factors that are no matrices")
    for leaves in (LEAVES, OLD):
        a1, a2, b1, b2 = (shapes[leaf] for leaf in leaves)
        if (a1[0], a2[1], b1[0]) == (layer[1], layer[1], layer[0]) and a1[1] == a2[0] and b1[1] == b2[0]:
            return dict(zip(LEAVES, leaves, strict=True))
    every = ", ".join(f"{leaf} {list(shapes[leaf])}" for leaf in LEAVES)
    raise AdapterMismatch(f"has {every}, which fit the layer's {list(layer)} in no order")


def size(shapes: Shapes, layer: Layer) -> Size:
    """The lanes of both halves, or those of the whole change where that has fewer.

    Raises:
        AdapterMismatch: a factor is missing, or its shape is not the layer's.
    """
    weight_only(layer)
    named = _named(shapes, layer)
    ranks = shapes[named["a2"]][0], shapes[named["b2"]][0]
    expect(shapes, named["a1"], (layer[1], ranks[0]))
    expect(shapes, named["a2"], (ranks[0], layer[1]))
    expect(shapes, named["b1"], (layer[0], ranks[1]))
    expect(shapes, named["b2"], (ranks[1], *layer[1:]))
    lanes = ranks[0] * math.prod(layer[2:]) + ranks[1]
    return Size(lanes) if lanes < full(layer) else Size(full(layer), full=True)


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`, and BaseNeeded where there is no base to read the weight from."""
    made = size(update.shapes, update.shape)
    named = _named(update.shapes, update.shape)
    a1, a2, b1, b2 = (update.tensors[named[leaf]] for leaf in LEAVES)
    scale = scale_of(update, len(b2))
    out, width, *kernel = update.shape
    places = math.prod(kernel)
    weighted = _weighted(update.weight("glora").reshape(out, width, places), flat(a1, width))
    down, up, lowered = transposed(b2, len(b2)), transposed(b1, out), transposed(a2, len(a2))
    if made.full:
        change: FloatArray = (lowered @ weighted).reshape(-1, out)
        change += down @ up
        return (lowrank(whole(change), scale),)
    spread = kron_matrix(lowered, np.eye(places, dtype=np.float32))  # every place of the kernel by itself
    pair = np.concatenate((spread, down), axis=1), np.concatenate((weighted.reshape(-1, out), up))
    return (lowrank(pair, scale),)


def _weighted(weight: FloatArray, a1: FloatArray) -> FloatArray:
    """W a1 for every place of the kernel; weight: [out, in, places], a1: [in, rank] -> [rank, places * out]."""
    made: FloatArray = np.empty((len(weight), weight.shape[2], a1.shape[1]), np.float32)
    for part in chunks(len(weight), weight.shape[1] * weight.shape[2]):
        rows = weight[part].swapaxes(1, 2)
        made[part] = (rows.reshape(-1, len(a1)) @ a1).reshape(rows.shape[:2] + a1.shape[1:])
    return np.ascontiguousarray(made.transpose(2, 1, 0)).reshape(a1.shape[1], -1)


def rank(shapes: Shapes) -> int | None:
    """The smallest side of A."""
    return min(shapes["a1"][:2]) if len(shapes.get("a1", ())) > 1 else None


GLORA = Kind(
    name="glora",
    spellings={**{leaf: (f"{leaf}.weight",) for leaf in LEAVES}, **SCALE_LEAVES},
    signature=frozenset(LEAVES),
    form=form,
    size=size,
    rank=rank,
)
