"""OFT and COFT: blocks of output channels are rotated, W'[block] = R^T W[block] (Qiu et al. 2023).

LyCORIS (functional/diag_oft.py) and kohya (networks/oft.py) store `oft_blocks` [blocks, n, n], from which R is made;
LyCORIS before 2 stored R itself as `oft_diag`. The change is R^T W - W, of full rank, and the multiplier scales it.
"""

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import chunks, flat, full
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, vector, weight_only
from lora_edge.kinds.rotation import rotated, turns

LEAVES = ("oft_blocks", "oft_diag")


def size(shapes: Shapes, layer: Layer) -> Size:
    """Full rank. Raises AdapterMismatch where the blocks are not those of the layer's output channels."""
    weight_only(layer)
    present = [leaf for leaf in LEAVES if leaf in shapes]
    if len(present) != 1:
        raise AdapterMismatch(f"has {' and '.join(sorted(shapes))} and needs one of {' and '.join(LEAVES)}")
    blocks = shapes[present[0]]
    if len(blocks) != 3 or blocks[1] != blocks[2] or blocks[0] * blocks[1] != layer[0]:
        raise AdapterMismatch(f"has {present[0]} {list(blocks)} where the layer has {layer[0]} output channels")
    if "rescale" in shapes:
        vector(shapes, "rescale", layer[0])
    return Size(full(layer), full=True)


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`, and BaseNeeded where there is no base to read the weight from."""
    size(update.shapes, update.shape)
    if "oft_blocks" in update.tensors:
        change_of = turns(update, update.tensors["oft_blocks"])
    else:
        change_of = update.tensors["oft_diag"].astype(np.float32)
        change_of -= np.eye(change_of.shape[1], dtype=np.float32)
    weight = update.weight("oft")
    rows = flat(weight, len(weight)).reshape(*change_of.shape[:2], -1)
    change: FloatArray = np.empty((rows.shape[2], len(weight)), np.float32)
    for part in chunks(*change.shape):
        change[part] = (change_of.swapaxes(1, 2) @ rows[:, :, part]).reshape(len(weight), -1).T
    return (rotated(update, weight, change),)


OFT = Kind(
    name="oft",
    spellings={leaf: (leaf,) for leaf in (*LEAVES, "rescale", "alpha")},
    signature=frozenset(LEAVES),
    form=form,
    size=size,
    tells=lambda shapes: len(shapes.get("oft_blocks", ())) != 4,
)
