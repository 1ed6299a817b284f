"""Memory that is no longer used goes back to the system, so that one step's peak does not lie under the next one's."""

import ctypes
import gc
import sys


def release() -> None:
    """Collect what is unreachable, and have the C library return what is free; glibc alone keeps it otherwise."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
