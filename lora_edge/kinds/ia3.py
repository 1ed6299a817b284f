"""IA3 (Liu et al. 2022): channels of the base weight are scaled, and nothing is added to it.

LyCORIS (modules/ia3.py): W' = W * (1 + multiplier * weight), on output or input channels by `on_input`, the bias left
alone. PEFT (tuners/ia3): `ia3_l` is the factor itself; on the output it scales the layer's bias too, on the input (its
feed-forward layers) not. A Conv's `ia3_l` [1, n, 1, 1] does not say which side it means: its length does, or, where
both sides have that length, the config.
"""

import numpy as np

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Bias, Form, Gain
from lora_edge.kinds.factors import finite
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, need, parameters, vector, weight_only
from lora_edge.kinds.scale import number


def size(shapes: Shapes, layer: Layer) -> Size:
    """One number per channel. Raises AdapterMismatch where the layer has others, or a tensor is missing."""
    need(shapes, "weight", "on_input")
    weight_only(layer)
    length = int(np.prod(shapes["weight"]))
    vector(shapes, "weight", length if length == layer[1] else layer[0])
    return Size(values=length)


def form(update: Update) -> tuple[Form, ...]:
    """One Gain. Raises as `size`."""
    size(update.shapes, update.shape)
    on_input = number("on_input", update.tensors["on_input"]) != 0
    vector(update.shapes, "weight", update.shape[int(on_input)])
    values = 1 + update.tensors["weight"].astype(np.float32).reshape(-1)
    return (Gain("in" if on_input else "out", values),)


IA3 = Kind(
    name="ia3",
    spellings={"weight": ("weight",), "on_input": ("on_input",)},
    signature=frozenset({"on_input"}),
    form=form,
    size=size,
)


def _peft_on_input(shapes: Shapes, layer: Layer, feedforward: bool | None) -> bool:
    """Which side PEFT's factor means: a Linear's says so by its axis, a Conv's by its length."""
    shape = shapes["ia3_l"]
    sides = {
        (layer[0], 1): False,
        (1, layer[1]): True,
        (1, layer[1], 1, 1): True,
        (1, layer[0], 1, 1): False,
    }
    if layer[0] == layer[1] and len(shape) == 4 and feedforward is not None:
        return feedforward
    if shape not in sides:
        raise AdapterMismatch(f"has ia3_l {list(shape)} where the layer has shape {list(layer)}")
    return sides[shape]


def peft_size(shapes: Shapes, layer: Layer) -> Size:
    """One number per channel, and a bias where the output is scaled. Raises as `size`."""
    need(shapes, "ia3_l")
    weight_only(layer)
    on_input = _peft_on_input(shapes, layer, None)
    return Size(values=layer[1] if on_input else 2 * layer[0])


def peft_form(update: Update) -> tuple[Form, ...]:
    """A Gain, and on the output the Bias that scales the layer's own.

    Raises:
        AdapterMismatch: as `peft_size`.
        BaseNeeded: the output is scaled, and there is no base to read the bias from.
    """
    peft_size(update.shapes, update.shape)
    values = update.tensors["ia3_l"].astype(np.float32).reshape(-1)
    if _peft_on_input(update.shapes, update.shape, update.feedforward):
        return (Gain("in", values),)
    bias = update.bias("ia3 of PEFT")
    if bias is None:
        return (Gain("out", values),)
    delta = bias * (values - 1)
    finite("a bias", delta)
    return (Gain("out", values), Bias(delta))


IA3_PEFT = Kind(
    name="ia3",
    spellings=parameters("ia3_l"),
    signature=frozenset({"ia3_l"}),
    form=peft_form,
    size=peft_size,
)
