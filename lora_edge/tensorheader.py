"""The header of a safetensors file: JSON, name -> {dtype, shape, data_offsets}, and `__metadata__`, string -> string.

It is read name by name and never as one JSON value, so that it can take memory for tensors and strings and for nothing
else: lists in lists, or a million empty objects, are refused where they begin.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

METADATA = "__metadata__"
MAX_TENSORS = 50_000  # the largest adapters of SDXL have 10,000
MAX_STRINGS = 10_000  # of metadata; trainers write about a hundred
MAX_WIDE = 10_000_000  # bytes of a header that is not ASCII: one rare character makes Python take 4 bytes for each
MAX_ENTRY = 2_000  # characters of what is said of one tensor
MAX_AXES = 32
MAX_BYTES = 2**62  # of one tensor with its empty axes taken as 1: beyond it numpy's own arithmetic overflows

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such float: the bits
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True, slots=True)
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


class Wrong(Exception):
    """What is wrong with a header, before the file's name is added."""


def parse(text: bytes, size: int) -> Header:
    """Check a header.

    Args:
        text: the header.
        size: bytes of data after it, which the tensors must cover from first to last without overlap.

    Raises:
        Wrong: anything is not as the format says.
    """
    if not text.startswith(b"{"):
        raise Wrong("is no safetensors file: its header does not begin with {")
    if len(text) > MAX_WIDE and not text.isascii():
        raise Wrong(f"has a header of {len(text)} bytes beyond ASCII; at most {MAX_WIDE} are read")
    start = 8 + len(text)
    try:
        decoded = _Json(str(text, "utf-8"))
        del text  # so that no more than two copies of a long string are ever held
        entries, metadata = _read(decoded)
    except (ValueError, RecursionError) as reason:
        raise Wrong(f"has a header that is not JSON: {reason}") from None
    _cover(entries, size)
    return Header(entries, metadata, start)


def leading_strings(text: bytes) -> dict[str, str]:
    """The metadata of a header in which it stands first, as writers put it; the rest is not looked at.

    Raises:
        Wrong, ValueError, RecursionError: it does not, or is broken.
    """
    if len(text) > MAX_WIDE and not text.isascii():
        raise Wrong(f"has a header of {len(text)} bytes beyond ASCII; at most {MAX_WIDE} are read")
    decoded = _Json(str(text, "utf-8"))
    decoded.take("{")
    if decoded.string() != METADATA:
        raise Wrong("has other entries before its metadata")
    decoded.take(":")
    return _strings(decoded)


class _Json:
    """A text and the place in it that has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def next(self) -> str:
        """The next character that is no space, "" at the end; it is not passed."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> None:
        if self.next() != wanted:
            raise ValueError(f"{wanted or 'the end'} should be at character {self._at}")
        self._at += len(wanted)

    def string(self) -> str:
        if self.next() != '"':
            raise ValueError(f"a name should be at character {self._at}")
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        assert isinstance(value, str)  # it begins with a quote
        return value

    def names(self) -> Iterator[str]:
        """The names of an object; whoever asks for the next one has read the value of the last."""
        self.take("{")
        while self.next() != "}":
            name = self.string()
            self.take(":")
            yield name
            if self.next() == ",":
                self.take(",")
                if self.next() == "}":
                    raise ValueError(f"a name should be at character {self._at}")
            elif self.next() != "}":
                raise ValueError(f"a comma or }} should be at character {self._at}")
        self.take("}")

    def entry(self) -> Any:
        """A short object without objects in it; None where there is something else."""
        end = self._text.find("}", self._at, self._at + MAX_ENTRY) + 1
        if self.next() != "{" or not end:
            return None
        start, self._at = self._at, end
        return _DECODER.decode(self._text[start:end])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        _new(name, made)
        made[name] = value
    return made


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _new(name: str, made: Mapping[str, Any]) -> None:
    if name in made:
        raise Wrong(f"names {name!r} twice in its header")


def _read(text: _Json) -> tuple[dict[str, Entry], dict[str, str]]:
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] | None = None
    for name in text.names():
        _new(name, entries)
        if name != METADATA:
            entries[name] = _entry(name, text.entry())
        elif metadata is None:
            metadata = _strings(text)
        else:
            _new(name, {METADATA: metadata})
        if len(entries) > MAX_TENSORS:
            raise Wrong(f"names more than {MAX_TENSORS} tensors, which no adapter has")
    text.take("")
    return entries, metadata or {}


def _strings(text: _Json) -> dict[str, str]:
    made: dict[str, str] = {}
    if text.next() != "{":
        raise Wrong(f"has a `{METADATA}` that is not a map of strings")
    for name in text.names():
        _new(name, made)
        if text.next() != '"':
            raise Wrong(f"has a `{METADATA}` that is not a map of strings")
        made[name] = text.string()
        if len(made) > MAX_STRINGS:
            raise Wrong(f"has more than {MAX_STRINGS} strings in its `{METADATA}`")
    return made


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _entry(name: str, item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise Wrong(f"describes {name!r} otherwise than by dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Wrong(f"has {name!r} in dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > MAX_AXES:
        raise Wrong(f"gives {name!r} a shape that is not a list of at most {MAX_AXES} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise Wrong(f"gives {name!r} data_offsets that are not two counts")
    itemsize = DTYPES[dtype].itemsize
    if math.prod(axis or 1 for axis in shape) * itemsize > MAX_BYTES:
        raise Wrong(f"gives {name!r} a shape too large for any memory: {shape}")
    needed, given = math.prod(shape) * itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise Wrong(f"gives {name!r} {given} bytes where shape {shape} of {dtype} needs {needed}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _cover(entries: Mapping[str, Entry], size: int) -> None:
    """The tensors, sorted by place, must follow one another and fill the data."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise Wrong(f"has tensors that {'overlap' if entry.start < end else 'leave a hole'} at {name!r}")
        end = entry.end
    if end != size:
        fault = "truncated" if end > size else "too long"
        raise Wrong(f"is {fault}: its tensors take {end} bytes of data and it has {size}")
