"""Constants of a program: values that stand in the protobuf, or lie in the file of weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged, OperationUnknown
from lora_edge.mil.blob import BlobFile, as_array
from lora_edge.mil.paths import inside
from lora_edge.mil.types import TensorType, read_type
from lora_edge.mil.wire import Message

MODEL_PATH = "@model_path"
# Fields of TensorValue: where numbers stand -> field, and how its numbers are read.
IMMEDIATE: Mapping[str, tuple[int, Callable[[Message], Any]]] = {
    "floats": (1, lambda tensor: np.frombuffer(tensor.packed(1, 4), "<f4")),
    "ints": (2, lambda tensor: np.array(tensor.integers(1), np.int64)),
    "bools": (3, lambda tensor: np.array(tensor.integers(1), np.int64) != 0),
    "strings": (4, lambda tensor: np.array(tensor.texts(1), object)),
    "bytes": (7, lambda tensor: tensor.view(1) or memoryview(b"")),
}


@dataclass(frozen=True)
class Blobs:
    """The weight files beside a model; each is mapped when it is first asked for."""

    folder: Path
    _open: dict[str, BlobFile]

    @classmethod
    def beside(cls, model: Path) -> "Blobs":
        """Those that a model file names."""
        return cls(model.parent, {})

    def file(self, name: str) -> BlobFile:
        """A weight file by the name that a program gives it, which lies below the model's own folder.

        Raises:
            BundleDamaged: it is missing, no weight file, or lies elsewhere.
        """
        if name not in self._open:
            prefix, _, relative = name.partition("/")
            path = inside(self.folder, relative)
            if prefix != MODEL_PATH or path is None:
                raise BundleDamaged(f"{self.folder} keeps weights in {name!r}, which lies outside the package")
            self._open[name] = BlobFile(path)
        return self._open[name]


@dataclass(frozen=True)
class Stored:
    """A weight in a weight file.

    Attributes:
        file: where it lies.
        offset: of its metadata.
        type: its type and shape.
        name: what the program calls it.
    """

    file: BlobFile
    offset: int
    type: TensorType
    name: str

    @cached_property
    def bytes(self) -> memoryview:
        """Its bytes, mapped; raises BundleDamaged where the file does not hold them."""
        return self.file.bytes(self.offset, self.type, f"the weight {self.name}")

    @property
    def array(self) -> Array:
        """The tensor."""
        return as_array(self.bytes, self.type)


@dataclass(frozen=True)
class Immediate:
    """A value that stands in the protobuf itself."""

    type: TensorType
    array: Array


Constant = Stored | Immediate


def read_value(view: memoryview, blobs: Blobs, name: str, where: str) -> Constant:
    """A Value of MIL.proto.

    Args:
        view: its bytes.
        blobs: the weight files.
        name: what the program calls it.
        where: for sentences.

    Raises:
        BundleDamaged: it is not of the type and shape that it says.
        OperationUnknown: it is no tensor.
    """
    message = Message(view, where)
    kind = read_type(message.message(2))
    if 5 in message:
        place = message.message(5)
        stored = Stored(blobs.file(place.text(1)), place.integer(2), kind, name)
        len(stored.bytes)  # a weight that is not there is told before anything is computed
        return stored
    return Immediate(kind, _immediate(message.message(3), kind, where))


def _immediate(message: Message, kind: TensorType, where: str) -> Array:
    if 1 not in message:
        raise OperationUnknown(f"{where} is a list or a dictionary, and only tensors are evaluated here")
    field, read = IMMEDIATE[kind.element.immediate]
    tensor = message.message(1)
    if field not in tensor:
        raise BundleDamaged(f"{where} should hold {kind}, and its value is of another type")
    found = read(tensor.message(field))
    if isinstance(found, memoryview):
        if len(found) != kind.element.size(kind.shape):
            raise BundleDamaged(f"{where} should hold {kind}, and has {len(found)} bytes")
        return as_array(found, kind)
    if found.size != int(np.prod(kind.shape, dtype=object)):
        raise BundleDamaged(f"{where} should hold {kind}, and has {found.size} numbers")
    made: Array = found.astype(kind.element.dtype).reshape(kind.shape)
    if found.dtype.kind == "i" and not np.array_equal(made.ravel(), found):
        raise BundleDamaged(f"{where} should hold {kind}, and has numbers that {kind.element.name} cannot hold")
    return made
