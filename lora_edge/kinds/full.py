"""Full differences: W' = W + multiplier * diff (LyCORIS modules/full.py; ComfyUI). On a norm, of its weight.

alpha has no meaning beside them (AUTOMATIC1111, network_full.py); a `scale` tensor has.
"""

import numpy as np

from lora_edge.forms import Form, NormDelta
from lora_edge.kinds.factors import finite, full, lowrank, transposed, whole
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, expect, need, vector
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of


def size(shapes: Shapes, layer: Layer) -> Size:
    """Full rank, or the channels of a norm. Raises AdapterMismatch where the shape is not the layer's."""
    need(shapes, "diff")
    if len(layer) == 1:
        vector(shapes, "diff", layer[0])
        return Size(values=layer[0])
    expect(shapes, "diff", layer)
    return Size(full(layer), full=True)


def form(update: Update) -> tuple[Form, ...] | NormDelta:
    """One LowRank, or a norm's delta. Raises as `size`."""
    size(update.shapes, update.shape)
    diff, scale = update.tensors["diff"], scale_of(update, None)
    if len(update.shape) == 1:
        delta = diff.astype(np.float32).reshape(-1) * np.float32(scale)
        finite("a norm's change", delta)
        return NormDelta(weight=delta)
    return (lowrank(whole(transposed(diff, len(diff))), scale),)


FULL = Kind(
    name="full",
    spellings={"diff": ("diff",), **SCALE_LEAVES},
    signature=frozenset({"diff"}),
    form=form,
    size=size,
)
