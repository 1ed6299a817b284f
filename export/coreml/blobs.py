"""Weight files: blobs moved from one to another as they are.

A file begins with the number of blobs and the version of the format, then each blob has a record of 64 bytes (a mark,
element type, size, offset of its data, unused bits) and its data, both at multiples of 64 (MILBlob, coremltools).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lora_edge.errors import ExportError

WEIGHTS = Path("Data") / "com.apple.CoreML" / "weights" / "weight.bin"  # in a package
ALIGNMENT = 64
MARK = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_PIECE = 1 << 24


def references(operation: Any) -> Iterator[Any]:
    """Every BlobFileValue that an operation names (MIL.proto); `.offset` is the place of a record."""
    arguments = [bound.value for argument in operation.inputs.values() for bound in argument.arguments]
    for value in (*operation.attributes.values(), *arguments):
        if value.WhichOneof("value") == "blobFileValue":
            yield value.blobFileValue


def size(source: BinaryIO, offset: int) -> int:
    """Bytes of a blob's data."""
    return _record(source, offset)[2]


def _record(source: BinaryIO, offset: int) -> tuple[int, int, int, int, int]:
    source.seek(offset)
    record: tuple[int, int, int, int, int] = _RECORD.unpack(source.read(_RECORD.size))
    if record[0] != MARK:
        raise ExportError(f"{source.name} has no blob at {offset}; the package was not written by coremltools 9")
    return record


def move(source: BinaryIO, operations: list[Any], target: Path) -> None:
    """Write the blobs that operations name into a file of their own, and let the operations name them there."""
    moved: dict[int, int] = {}
    with target.open("wb") as file:
        file.write(_HEADER.pack(0, 2))
        for reference in (reference for operation in operations for reference in references(operation)):
            if reference.offset not in moved:
                moved[reference.offset] = _append(source, reference.offset, file)
            reference.offset = moved[reference.offset]
        file.seek(0)
        file.write(_HEADER.pack(len(moved), 2))


def _append(source: BinaryIO, offset: int, file: BinaryIO) -> int:
    """The place of the record in the new file."""
    mark, dtype, bytes_left, start, padding = _record(source, offset)
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    place = file.tell()
    file.write(_RECORD.pack(mark, dtype, bytes_left, place + _RECORD.size, padding))
    source.seek(start)
    while bytes_left:
        piece = source.read(min(_PIECE, bytes_left))
        if not piece:
            raise ExportError(f"{source.name} ends within the blob at {offset}")
        file.write(piece)
        bytes_left -= len(piece)
    return place
