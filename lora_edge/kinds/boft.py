"""BOFT: output channels are rotated in stages, as in a butterfly (Liu et al. 2024; LyCORIS functional/boft.py).

`oft_blocks` [stages, blocks, n, n]: stage i regroups the channels (c, 2, g) -> (c, g, 2) with g = 2^i * n / 2, rotates
each n of them, and groups them back. LyCORIS interpolates every stage with the multiplier, others the whole change;
here the multiplier scales the whole change.
"""

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import chunks, flat, full
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, need, vector, weight_only
from lora_edge.kinds.rotation import rotated, turns


def size(shapes: Shapes, layer: Layer) -> Size:
    """Full rank. Raises AdapterMismatch where the blocks are not those of the layer's output channels."""
    need(shapes, "oft_blocks")
    weight_only(layer)
    blocks = shapes["oft_blocks"]
    wrong = len(blocks) != 4 or 0 in blocks or blocks[2] != blocks[3] or blocks[1] * blocks[2] != layer[0]
    if wrong or blocks[2] % 2 or layer[0] % (blocks[2] << min(blocks[0] - 1, 64)):
        raise AdapterMismatch(f"has oft_blocks {list(blocks)} where the layer has {layer[0]} output channels")
    if "rescale" in shapes:
        vector(shapes, "rescale", layer[0])
    return Size(full(layer), full=True)


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`, and BaseNeeded where there is no base to read the weight from."""
    size(update.shapes, update.shape)
    stages = turns(update, update.tensors["oft_blocks"])
    weight = update.weight("boft")
    rows = flat(weight, len(weight))
    change: FloatArray = np.empty((rows.shape[1], len(rows)), np.float32)
    for part in chunks(*change.shape):
        start = rows[:, part].astype(np.float64)
        change[part] = (_turned(start, stages) - start).T
    return (rotated(update, weight, change),)


def _turned(columns: Array, stages: FloatArray) -> Array:
    """Columns [out, some] through all stages; stages: R - I [stages, blocks, n, n]."""
    n = stages.shape[-1]
    for stage, turn in enumerate(stages):
        half = (n // 2) << stage
        apart = columns.reshape(-1, 2, half, columns.shape[1]).swapaxes(1, 2)
        blocks = apart.reshape(-1, n, columns.shape[1])
        blocks = blocks + turn @ blocks
        columns = blocks.reshape(-1, half, 2, columns.shape[1]).swapaxes(1, 2).reshape(columns.shape)
    return columns


BOFT = Kind(
    name="boft",
    spellings={leaf: (leaf,) for leaf in ("oft_blocks", "rescale", "alpha")},
    signature=frozenset({"oft_blocks"}),
    form=form,
    size=size,
    tells=lambda shapes: len(shapes.get("oft_blocks", ())) == 4,
)
