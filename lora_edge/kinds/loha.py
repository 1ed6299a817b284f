"""LoHa: dW = scale * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (Hyeon-Woo et al. 2022; LyCORIS functional/loha.py).

With `hada_t1`, `hada_t2` (Tucker) each half is sum_pq t[p,q,h,w] a[p,o] b[q,i], and `a` is transposed. The product
of two halves of r1 and r2 lanes has r1 * r2 lanes, or is written out where the layer's own sides are smaller.
"""

import math

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import Pair, flat, full, hadamard, khatri_rao, lowrank, transposed, tucker, whole
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, expect, need, parameters, weight_only
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of

HALVES = (
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
)


def _lanes(shapes: Shapes, layer: Layer, half: tuple[str, str, str]) -> int:
    """Lanes of one half, its shapes checked."""
    a, b, core = half
    need(shapes, a, b)
    lanes = shapes[b][0] if shapes[b] else 0
    if lanes == 0:
        raise AdapterMismatch(f"has a {b} of shape {list(shapes[b])}, which has no rank")
    if core not in shapes:
        expect(shapes, b, (lanes, *layer[1:]))
        expect(shapes, a, (layer[0], lanes))
        return lanes
    if len(shapes[core]) != 4 or shapes[core][0] == 0 or shapes[core][1:] != (lanes, *layer[2:]):
        raise AdapterMismatch(f"has a {core} of shape {list(shapes[core])} that does not follow its {b}")
    expect(shapes, b, (lanes, layer[1]))
    expect(shapes, a, (shapes[core][0], layer[0]))
    return min(shapes[core][0], layer[0])


def size(shapes: Shapes, layer: Layer) -> Size:
    """r1 * r2 lanes, or those of the whole change where that has fewer.

    Raises:
        AdapterMismatch: a factor is missing, or its shape is not the layer's.
    """
    weight_only(layer)
    lanes = math.prod(_lanes(shapes, layer, half) for half in HALVES)
    return Size(lanes) if lanes < full(layer) else Size(full(layer), full=True)


def _half(update: Update, half: tuple[str, str, str]) -> Pair:
    a, b = update.tensors[half[0]], update.tensors[half[1]]
    if half[2] in update.tensors:
        return tucker(update.tensors[half[2]], flat(b, len(b)), flat(a, len(a)))
    return transposed(b, len(b)), transposed(a, len(a))


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`."""
    made = size(update.shapes, update.shape)
    scale = scale_of(update, len(update.tensors["hada_w1_b"]))
    first, second = (_half(update, half) for half in HALVES)
    return (lowrank(whole(hadamard(first, second)) if made.full else khatri_rao(first, second), scale),)


def rank(shapes: Shapes) -> int | None:
    """Rows of `w1_b`."""
    return shapes["hada_w1_b"][0] if shapes.get("hada_w1_b") else None


LOHA = Kind(
    name="loha",
    spellings={**parameters(*(leaf for half in HALVES for leaf in half)), **SCALE_LEAVES},
    signature=frozenset(leaf for half in HALVES for leaf in half),
    form=form,
    size=size,
    rank=rank,
)
