"""A reader of safetensors files: numpy and the standard library, nothing copied before it is asked for.

The format (github.com/huggingface/safetensors, README, "Format"): eight bytes with the length N of the header,
little-endian; N bytes of JSON, name -> {dtype, shape, data_offsets} and optionally `__metadata__`, string -> string;
then the data, which the offsets must cover from first to last byte without overlap. Everything is checked against the
size of the file before memory is taken, so that a hostile file costs no more than its own header.
"""

import hashlib
import json
import math
import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterFileDamaged, LoraEdgeError

MAX_HEADER = 100_000_000  # bytes; the bound of the reference implementation
MAX_AXES = 32
MAX_BYTES = 2**62  # of one tensor with its empty axes taken as 1: beyond it numpy's own arithmetic overflows

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such float: the bits, decoded below
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

FOREIGN = (
    (b"PK\x03\x04", "is a pickle (.pt, .bin, .ckpt) or another zip file; convert it first with `lora-edge convert`"),
    (b"\x80\x02", "is a pickle (.pt, .bin, .ckpt); convert it first with `lora-edge convert`"),
    (b"\x80\x04", "is a pickle; convert it first with `lora-edge convert`"),
    (b"<", "is a web page and not a tensor file; download it again, perhaps logged in"),
    (b"version https://git-lfs", "is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`"),
    (b"GGUF", "is a GGUF file; lora-edge reads safetensors"),
    (b"{", "is JSON text and not a tensor file"),
)


def _float8(exponent_bits: int, bias: int, *, has_infinity: bool) -> FloatArray:
    """All 256 values of an 8-bit float, by code (Micikevicius et al. 2022, "FP8 Formats for Deep Learning")."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    size = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if has_infinity:
        top = exponent == 2**exponent_bits - 1
        size[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    else:
        size[codes & 0x7F == 0x7F] = np.nan
    values: FloatArray = np.where(codes >= 128, -size, size).astype(np.float32)
    return values


CODED: Mapping[str, FloatArray] = {
    "F8_E4M3": _float8(4, 7, has_infinity=False),
    "F8_E5M2": _float8(5, 15, has_infinity=True),
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies; start and end are bytes counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a file; data_start: bytes before the first tensor."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


class _Wrong(Exception):
    """What is wrong with a header, before the file's name is added."""


class TensorFile:
    """An open safetensors file.

    Attributes:
        path: where it lies.
        header: its checked header.
    """

    def __init__(self, path: Path, header: Header, data: mmap.mmap, error: type[LoraEdgeError]) -> None:
        self.path = path
        self.header = header
        self._data = data
        self._error = error

    @classmethod
    def open(cls, path: str | Path, error: type[LoraEdgeError] = AdapterFileDamaged) -> Self:
        """Map a file and check its header; `error` is the class raised for whatever is wrong with it."""
        path = Path(path)
        try:
            with _opened(path, error) as file:
                header = _header(file, path, error)
                return cls(path, header, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), error)
        except OSError as reason:
            raise error(f"{path} cannot be read: {reason.strerror or reason}") from reason

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the order of the header."""
        return tuple(self.header.entries)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.header.metadata

    def shape(self, name: str) -> tuple[int, ...]:
        return self.header.entries[name].shape

    def dtype(self, name: str) -> str:
        """The dtype as the file spells it, such as "BF16"."""
        return self.header.entries[name].dtype

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        entry = self.header.entries[name]
        return entry.end - entry.start

    def view(self, name: str) -> Array:
        """A read-only view of the map in the stored dtype (BF16 as uint16, F8 as uint8), shape as in the file.

        Raises:
            the class given to `open`: the file was cut since it was opened.
        """
        entry = self.header.entries[name]
        start, end = self.header.data_start + entry.start, self.header.data_start + entry.end
        if self._data.size() < end:  # touching a page beyond the end would kill the process
            raise self._error(f"{self.path} was cut while it was in use; load it again")
        stored = DTYPES[entry.dtype]
        return np.frombuffer(self._data, stored, (end - start) // stored.itemsize, start).reshape(entry.shape)

    def read(self, name: str) -> Array:
        """A copy of a tensor that does not depend on the file: float32 for floats, int64 for integers and booleans.

        Raises:
            the class given to `open`: the file was cut since it was opened.
        """
        stored, dtype = self.view(name), self.dtype(name)
        if dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if dtype in CODED:
            return CODED[dtype][stored]
        with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which is for the caller to refuse
            return stored.astype(np.float32 if stored.dtype.kind == "f" else np.int64)


def read_header(path: str | Path, error: type[LoraEdgeError] = AdapterFileDamaged) -> Header:
    """The checked header alone; no map is made. Raises `error` as `TensorFile.open` does."""
    path = Path(path)
    try:
        with _opened(path, error) as file:
            return _header(file, path, error)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}") from reason


def data_sha256(path: str | Path) -> str:
    """sha256 of everything after the header, in hex: equal for files that differ in metadata only.

    Raises:
        AdapterFileDamaged: as for `TensorFile.open`.
    """
    start = read_header(path).data_start
    with Path(path).open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path, error: type[LoraEdgeError]) -> BinaryIO:
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise error(f"{path} is not a regular file")
    return path.open("rb")


def _header(file: BinaryIO, path: Path, error: type[LoraEdgeError]) -> Header:
    try:
        return _checked(file, file.seek(0, 2))
    except _Wrong as wrong:
        raise error(f"{path} {wrong}") from None


def _checked(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    head = file.read(64)
    if size == 0:
        raise _Wrong("is empty")
    if head[8:9] != b"{":
        for start, sentence in FOREIGN:
            if head.lstrip().startswith(start):
                raise _Wrong(sentence)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > size - 8:
        raise _Wrong(f"is truncated or no safetensors file: a header of {length} bytes in a file of {size}")
    if length > MAX_HEADER:
        raise _Wrong(f"has a header of {length} bytes; at most {MAX_HEADER} are read")
    file.seek(8)
    items = _json(file.read(length))
    metadata = items.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Wrong("has a `__metadata__` that is not a map of strings")
    entries = {name: _entry(name, item) for name, item in items.items()}
    _cover(entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _json(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise _Wrong(f"names {twice!r} twice in its header")
        return made

    if not text.startswith(b"{"):
        raise _Wrong("is no safetensors file: its header does not begin with {")
    try:
        items = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as reason:
        raise _Wrong(f"has a header that is not JSON: {reason}") from None
    assert isinstance(items, dict)  # the text begins with {
    return items


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _entry(name: str, item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"describes {name!r} otherwise than by dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Wrong(f"has {name!r} in dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > MAX_AXES:
        raise _Wrong(f"gives {name!r} a shape that is not a list of at most {MAX_AXES} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _Wrong(f"gives {name!r} data_offsets that are not two counts")
    itemsize = DTYPES[dtype].itemsize
    if math.prod(axis or 1 for axis in shape) * itemsize > MAX_BYTES:
        raise _Wrong(f"gives {name!r} a shape too large for any memory: {shape}")
    needed, given = math.prod(shape) * itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise _Wrong(f"gives {name!r} {given} bytes where shape {shape} of {dtype} needs {needed}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _cover(entries: Mapping[str, Entry], size: int) -> None:
    """The tensors, sorted by place, must follow one another and fill the data."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _Wrong(f"has tensors that {'overlap' if entry.start < end else 'leave a hole'} at {name!r}")
        end = entry.end
    if end != size:
        fault = "truncated" if end > size else "too long"
        raise _Wrong(f"is {fault}: its tensors take {end} bytes of data and it has {size}")
