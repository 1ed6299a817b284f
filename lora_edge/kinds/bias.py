"""Biases beside another kind: `diff_b`, a change of the layer's bias, and `lora_B.bias`, the bias of PEFT's `up`.

`diff_b` may also stand alone (ComfyUI); on a norm it changes the norm's bias. `lora_B.bias` is scaled as the product
of the factors is (PEFT tuners/lora/layer.py, `lora_bias`).
"""

from dataclasses import replace

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Bias, LowRank, NormDelta
from lora_edge.kinds.factors import finite
from lora_edge.kinds.kind import Layer, Shapes, Size, Update, vector
from lora_edge.kinds.modifier import Forms, Modifier


def _vector(update: Update, leaf: str) -> FloatArray:
    return update.tensors[leaf].astype(np.float32).reshape(-1)


def _size(leaf: str, shapes: Shapes, layer: Layer, size: Size) -> Size:
    vector(shapes, leaf, layer[0])
    return replace(size, values=size.values + layer[0])


def _difference(update: Update, forms: Forms) -> Forms:
    delta = _vector(update, "diff_b")
    return replace(forms, bias=delta) if isinstance(forms, NormDelta) else (*forms, Bias(delta))


def _of_up(update: Update, forms: Forms) -> Forms:
    if isinstance(forms, NormDelta) or not forms or not isinstance(forms[0], LowRank):
        raise AdapterMismatch("has the bias of an `up` and no `up`")
    delta = _vector(update, "up_bias") * np.float32(forms[0].scale)
    finite("a bias", delta)
    return (*forms, Bias(delta))


BIAS = Modifier(
    name="bias",
    spellings={"diff_b": ("diff_b",)},
    signature=frozenset({"diff_b"}),
    modify=_difference,
    size=lambda shapes, layer, size: _size("diff_b", shapes, layer, size),
    alone=True,
)

UP_BIAS = Modifier(
    name="bias",
    spellings={"up_bias": ("lora_B.bias", "lora_B.*.bias")},
    signature=frozenset({"up_bias"}),
    modify=_of_up,
    size=lambda shapes, layer, size: _size("up_bias", shapes, layer, size),
)
