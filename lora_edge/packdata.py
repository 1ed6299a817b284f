"""The numbers of a pack, read into memory of our own by several threads, or a map of the file where that is wished.

A map follows whatever is done to the file, and ends the process where it is cut, so it is for files that stay as they
are. Reading, most of the time goes into pages that nobody has used yet, which the threads' first touches ask for side
by side; what they do to the numbers costs next to nothing, in pieces that stay in a processor's cache.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import FileIO
from threading import Lock
from typing import Any

import numpy as np

from lora_edge.arrays import Array, FloatArray

PIECE = 1 << 18  # numbers: 1 MB as float32; in smaller ones threads mostly wait for the interpreter
THREADS = min(4, os.cpu_count() or 1)

KEPT = np.int32(-0x70000001)
REBIAS = np.float32(2.0**112)


@dataclass(frozen=True)
class Stored:
    """How a file holds numbers.

    Attributes:
        dtype: that its bytes are read as.
        widen: (read, made) -> nothing; the same numbers in float32.
        limit: what is finite stays below it in size, and infinity does not.
    """

    dtype: np.dtype[Any]
    widen: Callable[[Array, FloatArray], None]
    limit: float


def room(count: int) -> FloatArray:
    """Float32 that nothing was written to, in small pages where the system lets us choose.

    numpy asks for large ones, and the system may have to move what lies in their way first.
    """
    if not count or not (hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")):
        return np.empty(count, np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32)


def mapped(file: FileIO, start: int, count: int) -> FloatArray:
    """So many float32 from a byte on, where they lie in the file: nothing is read before somebody looks.

    Writing to them would not change the file.
    """
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.float32, count, start)


def fill(data: FloatArray, file: FileIO, start: int, stored: Stored, threads: ThreadPoolExecutor) -> Iterator[bool]:
    """Begin to fill an array with the numbers that a file holds from a byte on.

    Returns:
        For each piece, when it is done, whether its numbers were all there, and finite.
    """
    return threads.map(partial(_piece, data, _Reader(file, start), stored), range(0, data.size, PIECE))


def _piece(data: FloatArray, reader: "_Reader", stored: Stored, first: int) -> bool:
    made = data[first : first + PIECE]
    read = np.empty(made.size, stored.dtype)
    if not reader.read(first, read):
        return False
    stored.widen(read, made)
    return bool(-stored.limit < made.min() <= made.max() < stored.limit)


class _Reader:
    """Reads for several threads, one at a time."""

    def __init__(self, file: FileIO, start: int) -> None:
        self._file, self._start, self._lock = file, start, Lock()

    def read(self, first: int, array: Array) -> bool:
        """Fill an array with the numbers from the first on; False where the file ends before."""
        room = array.view(np.uint8).data
        with self._lock:
            self._file.seek(self._start + first * array.itemsize)
            while len(room):
                if not (count := self._file.readinto(room)):
                    return False
                room = room[count:]
        return True


def _halves(read: Array, made: FloatArray) -> None:
    """Exactly: float16's bits in the places of float32's, times 2^(127 - 15)."""
    bits = made.view(np.int32)
    np.left_shift(read, 13, out=bits, dtype=np.int32)
    np.bitwise_and(bits, KEPT, out=bits)  # the sign, and no copies of it
    np.multiply(made, REBIAS, out=made)


def _singles(read: Array, made: FloatArray) -> None:
    made[...] = read


HALVES = Stored(np.dtype(np.int16), _halves, 2.0**16)
SINGLES = Stored(np.dtype(np.float32), _singles, math.inf)
