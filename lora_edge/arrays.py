"""Array types, spelled once.

Axes are named from one list everywhere: lanes (the rank axis of all adapters side by side), in, out, kh, kw,
rows (of a batch), tokens, channels, height, width.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]
