"""Norm differences: weight + multiplier * w_norm, bias + multiplier * b_norm (LyCORIS modules/norms.py).

Either may stand alone, as in ComfyUI.
"""

import numpy as np

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import NormDelta
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, vector

LEAVES = ("w_norm", "b_norm")


def size(shapes: Shapes, layer: Layer) -> Size:
    """The channels of each. Raises AdapterMismatch where the layer is no norm, or has other channels."""
    if len(layer) != 1:
        raise AdapterMismatch(f"has {' and '.join(sorted(shapes))}, which change norms, and the layer is none")
    present = [leaf for leaf in LEAVES if leaf in shapes]
    for leaf in present:
        vector(shapes, leaf, layer[0])
    return Size(values=layer[0] * len(present))


def form(update: Update) -> NormDelta:
    """A norm's delta. Raises as `size`."""
    size(update.shapes, update.shape)
    weight, bias = (
        update.tensors[leaf].astype(np.float32).reshape(-1) if leaf in update.tensors else None for leaf in LEAVES
    )
    return NormDelta(weight, bias)


NORM = Kind(
    name="norm",
    spellings={leaf: (leaf,) for leaf in LEAVES} | {"alpha": ("alpha",)},
    signature=frozenset(LEAVES),
    form=form,
    size=size,
)
