"""DoRA (Liu et al. 2024): W' = W + multiplier * (m * V / |V| - W), where V = W + dW, around any kind of factors.

The norm is taken over everything but the output channels, or but the input channels, as `dora_scale` has its shape
(LyCORIS modules/base.py, `wd_on_output`); PEFT's magnitudes are always of output channels (tuners/lora/dora.py). With
f = m / |V| the change is (f - 1) W + f dW: a Gain f, and the factors scaled by f on the same axis. It is the trainers'
own weight at multiplier 1 and the base at 0, where LyCORIS and PEFT have other weights.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Form, Gain, LowRank
from lora_edge.kinds.factors import finite
from lora_edge.kinds.kind import Layer, Shapes, Size, Update, parameters, vector
from lora_edge.kinds.modifier import Forms, Modifier

CANCELLED = 0.1  # of what would be the square of a norm if nothing cancelled
RUN = 256  # numbers that are added up in float32

Axis = Literal["in", "out"]
LEAVES = ("dora_scale", "lora_magnitude_vector")


def _axis(shapes: Shapes, layer: Layer) -> tuple[str, Axis]:
    """(the leaf that is there, the axis that it is of)."""
    leaf, other = LEAVES if LEAVES[0] in shapes else LEAVES[::-1]
    if other in shapes:
        raise AdapterMismatch(f"has both {leaf} and {other}")
    shape = shapes[leaf]
    across = leaf == "dora_scale" and len(shape) > 1 and shape[0] == 1 and (shape[1] == layer[1] or layer[0] != 1)
    return leaf, "in" if across else "out"


def size(shapes: Shapes, layer: Layer, around: Size) -> Size:
    """The kind's own size and the gains. Raises AdapterMismatch where the magnitudes are not those of the layer."""
    if len(layer) < 2 or not around.lanes:
        raise AdapterMismatch("has magnitudes beside no low-rank update")
    leaf, axis = _axis(shapes, layer)
    channels = layer[1 if axis == "in" else 0]
    vector(shapes, leaf, channels)
    return replace(around, values=around.values + channels)


def modify(update: Update, forms: Forms) -> Forms:
    """A Gain, and the LowRanks scaled as it is.

    Raises:
        BaseNeeded: there is no base to read the weight from.
        AdapterValueError: a gain is beyond float32.
    """
    leaf, axis = _axis(update.shapes, update.shape)
    factors = [form for form in forms if isinstance(form, LowRank)] if isinstance(forms, tuple) else []
    if isinstance(forms, tuple) and len(factors) < len(forms):
        raise AdapterMismatch("has magnitudes beside gains or biases, which no trainer makes")
    norms = _norms(update.weight("dora"), factors, axis)
    magnitudes = update.tensors[leaf].astype(np.float64).reshape(-1)
    gain = np.divide(magnitudes, norms, out=np.ones_like(norms), where=norms > 0).astype(np.float32)
    scaled: list[Form] = [_scaled(form, gain, axis) for form in factors]
    finite("a DoRA gain", norms, gain)
    finite("a factor", *(part for form in scaled if isinstance(form, LowRank) for part in (form.down, form.up)))
    return (Gain(axis, gain), *scaled)


def _scaled(form: LowRank, gain: FloatArray, axis: Axis) -> LowRank:
    if axis == "out":
        return replace(form, up=form.up * gain)
    return replace(form, down=form.down * np.repeat(gain, len(form.down) // len(gain))[:, None])


def _norms(weight: FloatArray, factors: list[LowRank], axis: Axis) -> Array:
    """|W + dW| per channel of the axis, float64.

    |W|^2 + 2 W dW + |dW|^2 is summed from the factors, for a fraction of what W + dW itself would cost. Where the three
    nearly cancel, the channel is computed again, from W + dW.
    """
    kernel = math.prod(weight.shape[2:])
    rows = weight.reshape(len(weight), -1)  # [out, patch]
    down = np.concatenate([form.down for form in factors], axis=1)
    up = np.concatenate([form.scale * form.up for form in factors])
    if axis == "in":
        rows, down, up = rows.T, up.T, down.T  # the same, with the sides of the layer changed over
    own = _squares(rows)
    cross = 2 * np.einsum("or,ro->o", rows @ down, up, dtype=np.float64)
    change = np.einsum("ro,ro->o", (down.T @ down) @ up, up, dtype=np.float64)
    squares = own + cross + change
    for channel in np.flatnonzero(squares < CANCELLED * (own + change)):
        squares[channel] = np.sum((rows[channel].astype(np.float64) + down.astype(np.float64) @ up[:, channel]) ** 2)
    norms: Array = np.sqrt(squares.reshape(-1, kernel).sum(1) if axis == "in" else squares)
    return norms


def _squares(rows: FloatArray) -> Array:
    """Sum of the squares of each row, float64; few numbers are added up in float32 before it takes over."""
    made = np.zeros(len(rows))
    for start in range(0, rows.shape[1], RUN):
        part = rows[:, start : start + RUN]
        made += np.einsum("op,op->o", part, part)
    return made


DORA = Modifier(
    name="dora",
    spellings=parameters(*LEAVES),
    signature=frozenset(LEAVES),
    modify=modify,
    size=size,
)
