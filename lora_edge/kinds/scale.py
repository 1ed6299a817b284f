"""alpha / rank, in one place for all kinds."""

from collections.abc import Mapping

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import AdapterMismatch, AdapterValueError
from lora_edge.kinds.kind import Update

SCALE_LEAVES: Mapping[str, tuple[str, ...]] = {"alpha": ("alpha",), "scale": ("scale",)}


def scale_of(update: Update, rank: int | None) -> float:
    """What the product of an update's factors is multiplied by.

    A `scale` tensor replaces alpha / rank (AUTOMATIC1111, network.py, calc_scale); then the file's own alpha counts,
    then a PEFT config; without any of them alpha is the rank (kohya, networks/lora.py, create_network_from_weights).
    Without a rank (a LoKr whose factors are both whole) alpha means nothing (LyCORIS, lokr.py), though PEFT's does.

    Raises:
        AdapterMismatch: alpha or scale is not one number.
        AdapterValueError: the scale is beyond float32.
    """
    scale = 1.0
    if "scale" in update.tensors:
        scale = number("scale", update.tensors["scale"])
    elif "alpha" in update.tensors and rank is not None:
        scale = number("alpha", update.tensors["alpha"]) / rank
    elif update.config_scale:
        scale = update.config_scale(rank)
    if abs(scale) > float(np.finfo(np.float32).max):
        raise AdapterValueError(f"has a scale of {scale}, which is beyond float32; the file is broken")
    return scale


def number(leaf: str, array: Array) -> float:
    """The one number of a tensor. Raises AdapterMismatch where it is several."""
    if array.size != 1:
        raise AdapterMismatch(f"has an {leaf} of shape {list(array.shape)} where one number belongs")
    return float(array.reshape(()))
