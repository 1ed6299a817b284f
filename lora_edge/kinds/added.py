"""A dense tensor added to a product of factors before it is scaled: `bias`, whole or sparse.

Early LyCORIS extractions keep what their factors leave out so: whole (AUTOMATIC1111, network.py, finalize_updown) or as
`bias_indices` [axes, n], `bias_values` [n], `bias_size` [axes] of a sparse tensor of the weight's shape.
"""

import math
from dataclasses import replace

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank, NormDelta
from lora_edge.kinds.factors import chunks, full, lowrank, transposed, whole
from lora_edge.kinds.kind import Layer, Shapes, Size, Update, expect, need
from lora_edge.kinds.modifier import Forms, Modifier

SPARSE = ("bias_indices", "bias_values", "bias_size")


def _size(shapes: Shapes, layer: Layer, size: Size) -> Size:
    if "bias" in shapes and len(shapes["bias"]) < 2:
        raise AdapterMismatch(
            f"has a bias of shape {list(shapes['bias'])}: a whole bias of the layer, which lora-edge does not read"
        )
    if "bias" in shapes:
        expect(shapes, "bias", layer)
    if not shapes.keys().isdisjoint(SPARSE):
        need(shapes, *SPARSE)
        indices, values = shapes["bias_indices"], shapes["bias_values"]
        if len(indices) != 2 or indices[1:] != values or shapes["bias_size"] != indices[:1]:
            raise AdapterMismatch(f"has bias_indices {list(indices)} that do not follow its values {list(values)}")
        if values[0] > math.prod(layer):
            raise AdapterMismatch(f"has {values[0]} bias_values where the layer has {math.prod(layer)} weights")
    return replace(size, lanes=size.lanes + full(layer), full=True)


def _dense(update: Update) -> FloatArray:
    """[patch, out]: both tensors together."""
    made = np.zeros((math.prod(update.shape[1:]), update.shape[0]), np.float32)
    if "bias" in update.tensors:
        made += transposed(update.tensors["bias"], update.shape[0])
    if "bias_values" in update.tensors:
        indices, values, axes = (update.tensors[leaf] for leaf in SPARSE)
        shape = tuple(int(axis) for axis in axes)
        expect({"bias_size": shape}, "bias_size", update.shape)
        for part in chunks(len(values), len(axes)):
            np.add.at(made, _places(indices[:, part], shape, len(made)), values[part])
    return made


def _places(indices: Array, shape: tuple[int, ...], patch: int) -> tuple[Array, Array]:
    """Indices [axes, n] of a tensor -> (rows, columns) of its transposed matrix."""
    try:
        at = np.ravel_multi_index(tuple(indices.astype(np.int64)), shape)
    except ValueError:
        raise AdapterMismatch(f"has bias_indices outside of its bias_size {list(shape)}") from None
    return at % patch, at // patch


def _modify(update: Update, forms: Forms) -> Forms:
    if isinstance(forms, NormDelta) or not forms or not isinstance(forms[0], LowRank):
        raise AdapterMismatch("has a dense bias beside no low-rank update")
    return (*forms, lowrank(whole(_dense(update)), forms[0].scale))


ADDED = Modifier(
    name="dense",
    spellings={leaf: (leaf,) for leaf in ("bias", *SPARSE)},
    signature=frozenset({"bias", *SPARSE}),
    modify=_modify,
    size=_size,
)
