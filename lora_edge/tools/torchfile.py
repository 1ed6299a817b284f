"""Files that `torch.save` wrote: their tree of containers, and the numbers of the tensors in it, without torch.

Since torch 1.6 such a file is a zip archive whose entries are stored uncompressed: `<folder>/data.pkl`, the pickle, and
`<folder>/data/<key>`, one storage each. Before, it was five pickles in a row (magic number, version, facts of the
machine, the tree, the keys of the storages) and then the storages, each after its count of elements as eight bytes.
See torch/serialization.py, `_save` and `_legacy_save`.
"""

import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.tensorfile import DTYPES
from lora_edge.tools.pickles import MAX_BYTES, Maker, Persistent, Wrong, quoted, read_pickle
from lora_edge.tools.torchnames import KNOWN, Storage, StoredTensor, storage_of
from lora_edge.tools.zipfolder import Span, read_folder

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001


@dataclass(frozen=True)
class TorchFile:
    """A file that torch wrote.

    Attributes:
        tree: dicts, lists and tuples of `StoredTensor`, `Dtype`, text, numbers and None.
    """

    tree: Any
    data: mmap.mmap
    places: Mapping[str, Span]

    def view(self, tensor: StoredTensor) -> Array:
        """The numbers of a tensor, read-only, in the dtype that `lora_edge.tensorfile.DTYPES` gives its name."""
        dtype = DTYPES[tensor.dtype]
        strides = [
            step * dtype.itemsize if axis > 1 else 0 for axis, step in zip(tensor.shape, tensor.strides, strict=True)
        ]
        if tensor.nbytes == 0:
            return np.empty(tensor.shape, dtype)
        start = self.places[tensor.storage.key].start + tensor.offset * dtype.itemsize
        return np.ndarray(tensor.shape, dtype, self.data, start, strides)


def open_torch(path: Path) -> TorchFile:
    """Map a file that torch wrote and read its tree; no numbers are touched.

    Raises:
        Wrong: it is none, or one that asks for something else than tensors.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return (_open_zip if data[:2] == b"PK" else _open_legacy)(data)


class _Storages:
    """The storages that a tree refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def __call__(self, persistent_id: Any) -> Storage | Maker:
        match persistent_id:
            case ("module", Maker() as known, _, _):  # the older form writes a class with its source code, unused here
                return known
        storage = storage_of(persistent_id)
        if self.by_key.setdefault(storage.key, storage) != storage:
            raise Wrong(f"describes the storage {quoted(storage.key)} in two ways")
        return storage


def _open_zip(data: mmap.mmap) -> TorchFile:
    entries = read_folder(data)
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise Wrong("is a zip file and none of torch's: there is not one data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise Wrong("is a TorchScript program and not a file of tensors")
    order = entries.get(f"{folder}byteorder")
    if order and data[order.start : order.end] != b"little":
        raise Wrong("was written on a big-endian machine; save it again on a little-endian one")
    place = entries[pickles[0]]
    if place.end - place.start > MAX_BYTES:
        raise Wrong(f"has a pickle of {place.end - place.start} bytes; at most {MAX_BYTES} are read")
    storages = _Storages()
    tree = read_pickle(io.BytesIO(data[place.start : place.end]), KNOWN, storages)
    places: dict[str, Span] = {}
    for key, storage in storages.by_key.items():
        span = entries.get(f"{folder}data/{key}")
        if span is None:
            raise Wrong(f"lacks the storage {quoted(key)}")
        if span.end - span.start != storage.nbytes:
            raise Wrong(f"has {span.end - span.start} bytes in the storage {quoted(key)} where {storage.nbytes} belong")
        places[key] = span
    return TorchFile(tree, data, places)


def _open_legacy(data: mmap.mmap) -> TorchFile:
    storages = _Storages()
    magic, at = _read(data, 0, storage_of)
    if magic != LEGACY_MAGIC:
        raise Wrong("is a pickle that torch.save did not write")
    version, at = _read(data, at, storage_of)
    if version != LEGACY_VERSION:
        raise Wrong(f"is in torch's older form, of another version than {LEGACY_VERSION}")
    machine, at = _read(data, at, storage_of)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Wrong("was not written on a little-endian machine; save it again on one")
    tree, at = _read(data, at, storages)
    keys, at = _read(data, at, storage_of)
    return TorchFile(tree, data, _in_a_row(data, at, keys, storages.by_key))


def _read(data: mmap.mmap, at: int, persistent: Persistent) -> tuple[Any, int]:
    """The pickle that begins at a byte, and where it ends."""
    file = io.BytesIO(data[at : at + MAX_BYTES])
    return read_pickle(file, KNOWN, persistent), at + file.tell()


def _in_a_row(data: mmap.mmap, at: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, Span]:
    """Where the storages lie that follow the pickles of the older form."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or len({*keys}) != len(keys):
        raise Wrong("has a list of storages that is not one of different keys")
    if storages.keys() != {*keys}:
        raise Wrong("lists other storages than its tensors refer to")
    places: dict[str, Span] = {}
    for key in keys:
        count, start = int.from_bytes(data[at : at + 8], "little"), at + 8
        if count != storages[key].size or start + storages[key].nbytes > len(data):
            raise Wrong(f"is truncated or damaged at the storage {quoted(key)}")
        at = start + storages[key].nbytes
        places[key] = Span(start, at)
    if at != len(data):
        raise Wrong(f"is too long: {len(data) - at} bytes follow the last storage")
    return places
