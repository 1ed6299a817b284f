"""A reader of safetensors files: numpy and the standard library, nothing copied before it is asked for.

The format (github.com/huggingface/safetensors, README, "Format"): eight bytes with the length N of the header,
little-endian; N bytes of JSON, name -> {dtype, shape, data_offsets} and optionally `__metadata__`, string -> string;
then the data, which the offsets must cover from first to last byte without overlap (tensorheader.py). Everything is
checked against the size of the file before memory is taken, so that a hostile file costs no more than its own header.
"""

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterFileDamaged, LoraEdgeError
from lora_edge.tensorheader import DTYPES, MAX_AXES, MAX_BYTES, Entry, Header, Wrong, leading_strings, parse

__all__ = ["CODED", "DTYPES", "FOREIGN", "MAX_AXES", "MAX_BYTES", "MAX_HEADER", "Entry", "Header", "TensorFile"]
__all__ += ["data_sha256", "read_header", "read_strings"]

MAX_HEADER = 100_000_000  # bytes; the bound of the reference implementation

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


def read_strings(path: str | Path, error: type[LoraEdgeError] = AdapterFileDamaged) -> Mapping[str, str]:
    """The header's strings; where they stand first, nothing else is looked at. Raises as `read_header`."""
    path = Path(path)
    try:
        with _opened(path, error) as file:
            length = int.from_bytes(file.read(8), "little")
            if length <= min(MAX_HEADER, os.fstat(file.fileno()).st_size):  # or memory would be taken for what is told
                return leading_strings(file.read(length))
    except (OSError, ValueError, RecursionError, Wrong):
        pass  # read in order then, and refused if need be
    return read_header(path, error).metadata


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
    except Wrong as wrong:
        raise error(f"{path} {wrong}") from None


def _checked(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    head = file.read(64)
    if size == 0:
        raise Wrong("is empty")
    if head[8:9] != b"{":
        for start, sentence in FOREIGN:
            if head.lstrip().startswith(start):
                raise Wrong(sentence)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > size - 8:
        raise Wrong(f"is truncated or no safetensors file: a header of {length} bytes in a file of {size}")
    if length > MAX_HEADER:
        raise Wrong(f"has a header of {length} bytes; at most {MAX_HEADER} are read")
    file.seek(8)
    return parse(file.read(length), size - 8 - length)
