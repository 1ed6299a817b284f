"""A reader of ONNX Runtime's adapter files (`.onnx_adapter`), for files that nobody vouches for.

The schema (onnxruntime/lora/adapter_format/adapter_schema.fbs), a FlatBuffer with the identifier TORT:

    Adapter:   format_version, adapter_version, model_version: int32; parameters: [Parameter]
    Parameter: name: string; dims: [int64]; data_type: int32; raw_data: [uint8]

The encoding (flatbuffers.dev, "Internals"): little-endian; a table begins with the distance back to its vtable, which
is u16 size of the vtable, u16 size of the table, and per field its place in the table, 0 where it is left out; strings,
vectors and tables are reached by a u32 distance forward, and the first two begin with their u32 length. Every place is
checked before it is read; ONNX Runtime's own reader trusts dims and data types in some versions.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import AdapterFileDamaged

IDENTIFIER = b"TORT"
FORMAT = 1
MAX_NAME = 1024  # bytes of a parameter's name
MAX_AXES = 8
LEAST = 40  # bytes that one parameter takes: a table of 4 fields, and the lengths of its name, dims and data
DTYPES: Mapping[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8")}  # ONNX's numbers: FLOAT, INT64


@dataclass(frozen=True)
class Parameter:
    """Where one tensor lies; start is its first byte in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


class OrtFile:
    """An open adapter file.

    Attributes:
        path: where it lies.
        adapter_version, model_version: what its writer put there.
        parameters: by name.
    """

    def __init__(self, path: str | Path) -> None:
        """Map a file and check it.

        Raises:
            AdapterFileDamaged: it cannot be read, or is no such file.
        """
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # a pipe would wait for ever
            raise AdapterFileDamaged(f"{path} is not a regular file")
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise AdapterFileDamaged(f"{path} cannot be read: {error}") from error
        try:
            self._parse()
        except _Wrong as wrong:
            raise AdapterFileDamaged(f"{path} is damaged or no .onnx_adapter file: {wrong}") from None

    def read(self, name: str) -> Array:
        """A copy of a tensor, float32 or int64.

        Raises:
            AdapterFileDamaged: the file was cut since it was opened.
        """
        held = self.parameters[name]
        count = math.prod(held.shape)
        if self._data.size() < held.start + count * held.dtype.itemsize:
            raise AdapterFileDamaged(f"{self.path} was cut while it was in use; load it again")
        return np.frombuffer(self._data, held.dtype, count, held.start).reshape(held.shape).copy()

    def _parse(self) -> None:
        buffer = _Buffer(self._data)
        if buffer.bytes(4, 4) != IDENTIFIER:
            raise _Wrong(f"it does not say {IDENTIFIER.decode()}")
        root = buffer.table(buffer.follow(0))
        if (version := root.int32(0)) != FORMAT:
            raise _Wrong(f"its format is {version}, and {FORMAT} is read")
        self.adapter_version, self.model_version = root.int32(1), root.int32(2)
        self.parameters: dict[str, Parameter] = {}
        left = len(self._data)  # so that tensors which share their bytes cannot multiply them
        start, count = root.vector(3, 4)
        if count * LEAST > left:
            raise _Wrong(f"it counts {count} tensors, which it is too small for")
        for index in range(count):
            name, held = _parameter(buffer.table(buffer.follow(start + 4 * index)))
            left -= math.prod(held.shape) * held.dtype.itemsize
            if left < 0:
                raise _Wrong("its tensors overlap")
            if name in self.parameters:
                raise _Wrong(f"it names {name!r} twice")
            self.parameters[name] = held


def is_ort_adapter(path: Path) -> bool:
    """Whether a file says that it is one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == IDENTIFIER
    except OSError:
        return False


class _Wrong(Exception):
    """What is wrong with a file, before its name is added."""


class _Buffer:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)

    def bytes(self, start: int, count: int) -> bytes:
        if start < 0 or start + count > self._size:
            raise _Wrong("something lies outside the file")
        return self._data[start : start + count]

    def number(self, kind: str, at: int) -> int:
        (value,) = struct.unpack("<" + kind, self.bytes(at, struct.calcsize("<" + kind)))
        assert isinstance(value, int)
        return value

    def follow(self, at: int) -> int:
        return at + self.number("I", at)

    def table(self, at: int) -> "_Table":
        return _Table(self, at)


class _Table:
    def __init__(self, buffer: _Buffer, at: int) -> None:
        vtable = at - buffer.number("i", at)
        size = buffer.number("H", vtable)
        self._buffer, self._at = buffer, at
        self._places = struct.unpack(f"<{max(size // 2 - 2, 0)}H", buffer.bytes(vtable + 4, max(size // 2 - 2, 0) * 2))

    def place(self, field: int) -> int | None:
        """Where a field lies, None where it is left out."""
        found = self._places[field] if field < len(self._places) else 0
        return self._at + found if found else None

    def int32(self, field: int) -> int:
        place = self.place(field)
        return 0 if place is None else self._buffer.number("i", place)

    def vector(self, field: int, itemsize: int) -> tuple[int, int]:
        """First byte and number of items, all of them inside the file."""
        place = self.place(field)
        if place is None:
            return 0, 0
        start = self._buffer.follow(place)
        count = self._buffer.number("I", start)
        if start + 4 + count * itemsize > self._buffer._size:
            raise _Wrong("something lies outside the file")
        return start + 4, count

    def items(self, field: int, itemsize: int, most: int) -> bytes:
        start, count = self.vector(field, itemsize)
        if count > most:
            raise _Wrong(f"something has {count} items where {most} are the most")
        return self._buffer.bytes(start, count * itemsize)


def _parameter(table: _Table) -> tuple[str, Parameter]:
    try:
        name = table.items(0, 1, MAX_NAME).decode()
    except UnicodeDecodeError:
        raise _Wrong("a name is not UTF-8") from None
    dims = table.items(1, 8, MAX_AXES)
    shape = struct.unpack(f"<{len(dims) // 8}q", dims)
    dtype = DTYPES.get(table.int32(2))
    start, size = table.vector(3, 1)
    if dtype is None:
        raise _Wrong(f"{name!r} is neither float32 nor int64")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise _Wrong(f"{name!r} has {size} bytes for the shape {list(shape)}")
    return name, Parameter(dtype, shape, start)
