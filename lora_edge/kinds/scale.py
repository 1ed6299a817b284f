"""alpha / rank, in one place for all kinds."""

from collections.abc import Mapping

from lora_edge.arrays import Array
from lora_edge.errors import AdapterMismatch
from lora_edge.kinds.kind import Update

SCALE_LEAVES: Mapping[str, tuple[str, ...]] = {"alpha": ("alpha",), "scale": ("scale",)}


def scale_of(update: Update, rank: int) -> float:
    """What the product of an update's factors is multiplied by.

    A `scale` tensor replaces alpha / rank (AUTOMATIC1111, network.py, calc_scale); then the file's own alpha counts,
    then a PEFT config; without any of them alpha is the rank (kohya, networks/lora.py, create_network_from_weights).

    Raises:
        AdapterMismatch: alpha or scale is not one number.
    """
    if "scale" in update.tensors:
        return _number("scale", update.tensors["scale"])
    if "alpha" in update.tensors:
        return _number("alpha", update.tensors["alpha"]) / rank
    return update.config_scale(rank) if update.config_scale else 1.0


def _number(leaf: str, array: Array) -> float:
    if array.size != 1:
        raise AdapterMismatch(f"has an {leaf} of shape {list(array.shape)} where one number belongs")
    return float(array.reshape(()))
