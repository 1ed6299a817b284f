"""LoKr: dW = scale * kron(w1, w2) (LyCORIS functional/lokr.py).

w1 [a, c] and w2 [b, d(, kh, kw)], where out = a * b and in = c * d; each whole, or a product `_a @ _b`, and w2 also
sum_pq t2[p,q,h,w] w2_a[p,b] w2_b[q,d] (Tucker). Each factor is a pair of its own, whole ones with the identity on the
smaller side, so the lanes are the product of theirs, which is never more than the layer's smaller side.
"""

import numpy as np

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import Pair, flat, full, kron, lowrank, product, transposed, tucker, whole
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, expect, need, parameters, weight_only
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of

FIRST, SECOND = ("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b")
CORE = "lokr_t2"
LEAVES = (*FIRST, *SECOND, CORE)


def _sides(shapes: Shapes, factor: tuple[str, str, str]) -> tuple[int, int]:
    """Rows and input channels of w1, as its tensors say."""
    joined, a, b = factor
    if joined in shapes and (a in shapes or b in shapes):
        raise AdapterMismatch(f"has {joined} both whole and in factors")
    if joined not in shapes:
        need(shapes, a, b)
    rows, columns = shapes[joined if joined in shapes else a], shapes[joined if joined in shapes else b]
    if len(rows) < 2 or len(columns) < 2 or 0 in rows or 0 in columns:
        raise AdapterMismatch(f"has a {joined} of shape {list(rows)} that is no matrix")
    return rows[0], columns[1]


def _lanes(shapes: Shapes, factor: tuple[str, str, str], wanted: Layer) -> int:
    """Lanes of one factor of shape `wanted`, its shapes checked."""
    joined, a, b = factor
    if joined in shapes:
        expect(shapes, joined, wanted)
        return full(wanted)
    lanes = shapes[b][0]
    expect(shapes, b, (lanes, *wanted[1:]))
    expect(shapes, a, (wanted[0], lanes))
    return min(lanes, full(wanted))


def _tucker_lanes(shapes: Shapes, wanted: Layer) -> int:
    core, (_, a, b) = shapes[CORE], SECOND
    need(shapes, a, b)
    if "lokr_w2" in shapes or len(core) != 4 or 0 in core or core[2:] != (wanted[2:] or (1, 1)):
        raise AdapterMismatch(f"has a {CORE} of shape {list(core)} where the layer has shape {list(wanted)}")
    expect(shapes, a, (core[0], wanted[0]))
    expect(shapes, b, (core[1], wanted[1]))
    return min(core[0], full(wanted))


def size(shapes: Shapes, layer: Layer) -> Size:
    """The lanes of w1 times those of w2.

    Raises:
        AdapterMismatch: a factor is missing, or its shape does not divide the layer's.
    """
    weight_only(layer)
    rows, columns = _sides(shapes, FIRST)
    if layer[0] % rows or layer[1] % columns:
        raise AdapterMismatch(f"has a lokr_w1 of {rows} x {columns}, which does not divide the layer's {list(layer)}")
    wanted = (layer[0] // rows, layer[1] // columns, *layer[2:])
    if CORE in shapes:
        second = _tucker_lanes(shapes, wanted)
    else:
        _sides(shapes, SECOND)
        second = _lanes(shapes, SECOND, wanted)
    return Size(_lanes(shapes, FIRST, (rows, columns)) * second, full=_rank(shapes) is None)


def _pair(update: Update, factor: tuple[str, str, str]) -> Pair:
    joined, a, b = (update.tensors.get(leaf, np.zeros(0)) for leaf in factor)
    if joined.size:
        return whole(transposed(joined, len(joined)))
    return product(transposed(b, len(b)), transposed(a, len(a)))


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`."""
    size(update.shapes, update.shape)
    scale = scale_of(update, _rank(update.shapes))
    if CORE in update.tensors:
        a, b = (update.tensors[leaf] for leaf in SECOND[1:])
        second = product(*tucker(update.tensors[CORE], flat(b, len(b)), flat(a, len(a))))
    else:
        second = _pair(update, SECOND)
    return (lowrank(kron(_pair(update, FIRST), second), scale),)


def _rank(shapes: Shapes) -> int | None:
    """What alpha is divided by: rows of w2_b, else of w1_b (AUTOMATIC1111, network_lokr.py)."""
    return next((shapes[leaf][0] for leaf in ("lokr_w2_b", "lokr_w1_b") if shapes.get(leaf)), None)


LOKR = Kind(
    name="lokr",
    spellings={**parameters(*LEAVES), **SCALE_LEAVES},
    signature=frozenset(LEAVES),
    form=form,
    size=size,
    rank=_rank,
)
