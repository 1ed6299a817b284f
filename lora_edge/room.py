"""Memory for what stays: pages that are all there at once, where the system has a way to ask for them.

Each page that is first touched later stops the program for longer than it takes to copy what goes into it.
"""

import mmap
from math import prod

import numpy as np

from lora_edge.arrays import FloatArray

POPULATED = ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_POPULATE")  # Linux has all three


def room(*shape: int) -> FloatArray:
    """An array of float32 that nothing was written to.

    Raises:
        OSError: there is not so much memory.
    """
    size = 4 * prod(shape)
    if not size or not all(hasattr(mmap, name) for name in POPULATED):
        return np.empty(shape, np.float32)
    flags = sum(getattr(mmap, name) for name in POPULATED)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.float32).reshape(shape)
