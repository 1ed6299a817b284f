"""The file of weights of a package, "blob v2".

A header of 64 bytes (number of blobs, version 2), then blobs: 64 bytes of metadata (sentinel 0xDEADBEEF, element type,
size in bytes, offset of the data, bits of padding) and the data, each at a multiple of 64. Source: MILBlob in
coremltools (mlmodel/src/MILBlob/Blob/StorageFormat.hpp). The file is mapped: only what is used is read.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged
from lora_edge.mil.types import TensorType

HEADER = struct.Struct("<II56x")
METADATA = struct.Struct("<IIQQQ32x")
VERSION = 2
SENTINEL = 0xDEADBEEF


class BlobFile:
    """A mapped weight file.

    Args:
        path: the file.

    Raises:
        BundleDamaged: it is missing or is no weight file of version 2.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as reason:
            raise BundleDamaged(f"{path}, the file of the weights, cannot be read: {reason}") from reason
        if len(self._view) < HEADER.size:
            raise BundleDamaged(f"{path} ends in the middle of its header")
        version = HEADER.unpack_from(self._view)[1]
        if version != VERSION:
            raise BundleDamaged(f"{path} is not a weight file of version {VERSION}: it says {version}")

    def bytes(self, offset: int, kind: TensorType, where: str) -> memoryview:
        """The bytes of one weight.

        Args:
            offset: of its metadata.
            kind: type and shape that the program expects.
            where: what it is, for the sentence that refuses.

        Raises:
            BundleDamaged: no metadata there, other type or size, or the file ends before.
        """
        size = len(self._view)
        if not 0 <= offset <= size - METADATA.size:
            raise BundleDamaged(f"{self.path} ends in the middle of {where}: it has {size} bytes")
        sentinel, element, length, start, _ = METADATA.unpack_from(self._view, offset)
        if sentinel != SENTINEL:
            raise BundleDamaged(f"{self.path} has no weight at byte {offset}, where {where} should lie")
        if element != kind.element.blob or length != kind.element.size(kind.shape):
            raise BundleDamaged(
                f"{self.path}: {where} should be {kind}, {kind.element.size(kind.shape)} bytes, and the file has "
                f"{length} bytes of type {element}"
            )
        if start > size or length > size - start:
            raise BundleDamaged(f"{self.path} ends in the middle of {where}: it has {size} bytes of {start + length}")
        return self._view[start : start + length]


def as_array(view: memoryview | bytes, kind: TensorType) -> Array:
    """Bytes as a tensor, not copied; elements below 8 bits are unpacked, the lowest bits of a byte first."""
    if kind.element.bits >= 8:
        return np.frombuffer(view, kind.element.dtype).reshape(kind.shape)
    return unpack(np.frombuffer(view, np.uint8), kind.element.bits, int(np.prod(kind.shape))).reshape(kind.shape)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Unsigned numbers of 1 to 8 bits, packed lowest bit first, across bytes: [count] uint8."""
    # `bits` bytes hold 8 numbers: they are put into a word of 64 bits, which is shifted for each.
    groups = -(-count // 8)
    held = np.zeros(groups * bits, np.uint8)
    held[: len(packed)] = packed
    words = np.zeros((groups, 8), np.uint8)
    words[:, :bits] = held.reshape(groups, bits)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    spread: Array = (words.view("<u8") >> shifts) & np.uint64((1 << bits) - 1)
    return spread.astype(np.uint8).reshape(-1)[:count]
