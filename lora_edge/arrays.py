"""Array types, spelled once.

Axes are named from one list everywhere: lanes (the rank axis of all adapters side by side), in, out, kh, kw,
rows (of a batch), tokens, channels, height, width.
"""

from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]


def over(array: Array, owner: object) -> Array:
    """An array over the same memory, side by side as it is, that may be written to and keeps its owner alive."""
    told = array.__array_interface__
    return np.asarray(SimpleNamespace(__array_interface__={**told, "data": (told["data"][0], False)}, base=owner))
