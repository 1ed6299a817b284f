"""The living definition: what a slot computes, in numpy. Every graph is tested against it."""

import numpy as np

from lora_edge.arrays import Array
from lora_edge.slots import Slot


def effective_weight(slot: Slot, weight: Array, inputs: dict[str, Array], scale: Array) -> Array:
    """The weight that a row of the batch sees.

    Args:
        slot: the layer.
        weight: torch's layout, [out, in] or [out, in, kh, kw].
        inputs: leaf -> array as the graph takes it; what is missing changes nothing.
        scale: [lanes], this row's part of `lora.scales`.

    Returns:
        W' = gain_out * W * gain_in + up^T (scale * down^T), in the layout of `weight`.
    """
    spread = (1, -1, *(1 for _ in slot.kernel or ()))
    changed: Array = weight * np.reshape(inputs.get("gain_in", 1.0), spread)
    changed = changed * np.reshape(inputs.get("gain_out", 1.0), (-1, *spread[:1], *spread[2:]))
    if "down" in inputs:
        changed = changed + ((inputs["down"] * scale) @ inputs["up"]).T.reshape(weight.shape)
    return changed


def effective_bias(bias: Array | float, inputs: dict[str, Array]) -> Array | float:
    """b' = b + lora_bias, [out]."""
    return bias + inputs.get("bias", 0.0)


def linear(slot: Slot, x: Array, weight: Array, bias: Array | float, inputs: dict[str, Array], scales: Array) -> Array:
    """A Linear slot: x [rows, ..., in], scales [1 or rows, lanes] -> [rows, ..., out]."""
    rows = np.broadcast_to(scales, (len(x), scales.shape[1]))
    changed_bias = effective_bias(bias, inputs)
    return np.stack(
        [
            row @ effective_weight(slot, weight, inputs, scale).T + changed_bias
            for row, scale in zip(x, rows, strict=True)
        ]
    )
