"""Memory for what stays: pages that are all there at once, and large ones where the system has them.

Each page that is first touched stops the program for longer than it takes to copy what goes into it. A large one, of
2 MB in place of 4 kB, takes hardly longer: 24 MB are there after 1 ms in place of 8.
"""

import mmap
from contextlib import suppress
from math import prod

import numpy as np

from lora_edge.arrays import FloatArray

NEEDED = ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE")  # Linux has all three


def room(*shape: int) -> FloatArray:
    """An array of float32 that nothing was written to.

    Raises:
        OSError: there is not so much memory.
    """
    size = 4 * prod(shape)
    if not size or not all(hasattr(mmap, name) for name in NEEDED):
        return np.empty(shape, np.float32)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system may have been built without
        pages.madvise(mmap.MADV_HUGEPAGE)
    made = np.frombuffer(pages, np.float32)
    made[:: mmap.PAGESIZE // 4] = 0
    return made.reshape(shape)
