"""Memory that is no longer used goes back to the system, so that one step's peak does not lie under the next one's."""

import ctypes
import gc
import sys


def release() -> None:
    """Collect what is unreachable, and give back what is free."""
    gc.collect()
    trim()


def trim() -> None:
    """Have the C library return what is free; glibc alone keeps it otherwise."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        malloc_trim(0)
