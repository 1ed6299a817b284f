"""A safetensors file taken apart, so that every byte of it can be made wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_edge.tensorfile import CODED

Array = NDArray[Any]
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass
class Draft:
    """What will be a file.

    Attributes:
        entries: (name, what the header says of it), in order; a name may come twice.
        data: after the header.
        metadata: the header's strings; None for none.
        settings: text of the `adapter_config.json` beside it, for a folder of PEFT; None for a single file.
    """

    entries: list[tuple[str, Any]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    metadata: Any = None
    settings: str | None = None

    def add(self, name: str, dtype: str, array: Array) -> None:
        """Append a tensor."""
        start = len(self.data)
        self.data += encoded(dtype, array)
        offsets = [start, len(self.data)]
        self.entries.append((name, {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}))

    def copy(self) -> "Draft":
        entries = [(name, {key: _own(value) for key, value in item.items()}) for name, item in self.entries]
        return Draft(entries, bytearray(self.data), self.metadata, self.settings)

    def bytes_of(self, index: int) -> slice:
        """Where the data of an entry lie."""
        return slice(*self.entries[index][1]["data_offsets"])

    def put(self, index: int, dtype: str, shape: list[int], data: bytes) -> None:
        """Another tensor in the place of one; everything after it moves."""
        name, old = self.entries[index]
        start, end = old["data_offsets"]
        self.data[start:end] = data
        moved = len(data) - (end - start)
        self.entries[index] = (name, {"dtype": dtype, "shape": shape, "data_offsets": [start, end + moved]})
        for other, (_, item) in enumerate(self.entries):
            if other != index and item["data_offsets"][0] >= end and (start, end) != tuple(item["data_offsets"]):
                item["data_offsets"] = [offset + moved for offset in item["data_offsets"]]

    def header(self) -> bytes:
        """Its text, with names that come twice and all."""
        pairs = [*([("__metadata__", self.metadata)] if self.metadata is not None else []), *self.entries]
        return ("{" + ",".join(f"{json.dumps(name)}:{json.dumps(item)}" for name, item in pairs) + "}").encode()

    def dump(self, header: bytes | None = None, length: int | None = None) -> bytes:
        """The file; header, length: instead of its own."""
        text = self.header() if header is None else header
        return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(self.data)


def _own(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def draft(tensors: Mapping[str, tuple[str, Array]], metadata: Any = None, settings: str | None = None) -> Draft:
    """A whole file; tensors: name -> (dtype as files spell it, values)."""
    made = Draft(metadata=metadata, settings=settings)
    for name, (dtype, array) in tensors.items():
        made.add(name, dtype, array)
    return made


def encoded(dtype: str, array: Array) -> bytes:
    """Values as a file holds them; those of 8 bits are the nearest code."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _encoded(dtype, np.asarray(array))


def _encoded(dtype: str, array: Array) -> bytes:
    if dtype in FLOATS:
        return array.astype(FLOATS[dtype]).tobytes()
    if dtype == "BF16":
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype in CODED:
        distance = np.abs(CODED[dtype][None] - array.astype(np.float64).reshape(-1, 1))
        codes: Array = np.nanargmin(np.where(np.isfinite(distance), distance, np.nan), axis=1)
        return codes.astype("u1").tobytes()
    return array.astype({"I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}[dtype]).tobytes()
