"""Types of values in MIL: element types by their numbers in MIL.proto and in FeatureTypes.proto, and shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_edge.errors import BundleDamaged, OperationUnknown
from lora_edge.mil.wire import Message

Shape = tuple[int, ...]

MAX_ELEMENTS = 1 << 32  # more than any tensor of these models: 16 GiB as float32
MAX_RANK = 16


@dataclass(frozen=True)
class ElementType:
    """An element type.

    Attributes:
        name: as MIL spells it.
        dtype: what numpy holds it in; bytes for those below 8 bits.
        bits: of one element in a file.
        blob: its number in the weight file; -1 where that cannot hold it.
        immediate: where the protobuf keeps values of it: the field of TensorValue.
    """

    name: str
    dtype: np.dtype[Any]
    bits: int
    blob: int
    immediate: str

    def size(self, shape: Shape) -> int:
        """Bytes of a tensor in a file."""
        return -(-math.prod(shape) * self.bits // 8)


def _made(name: str, dtype: str, bits: int, blob: int, immediate: str) -> ElementType:
    return ElementType(name, np.dtype(dtype), bits, blob, immediate)


BOOL = _made("bool", "?", 8, -1, "bools")
STRING = _made("string", "O", 0, -1, "strings")
FLOAT16 = _made("fp16", "<f2", 16, 1, "bytes")
FLOAT32 = _made("fp32", "<f4", 32, 2, "floats")
INT32 = _made("int32", "<i4", 32, 14, "ints")

# Numbers of DataType in MIL.proto; the blob's numbers are BlobDataType's in coremltools' MILBlob sources.
ELEMENTS: Mapping[int, ElementType] = {
    1: BOOL,
    2: STRING,
    10: FLOAT16,
    11: FLOAT32,
    21: _made("int8", "<i1", 8, 4, "bytes"),
    22: _made("int16", "<i2", 16, 6, "ints"),
    23: INT32,
    25: _made("int4", "<u1", 4, 8, "bytes"),
    31: _made("uint8", "<u1", 8, 3, "bytes"),
    32: _made("uint16", "<u2", 16, 7, "ints"),
    33: _made("uint32", "<u4", 32, 15, "bytes"),
    35: _made("uint4", "<u1", 4, 11, "bytes"),
    36: _made("uint2", "<u1", 2, 10, "bytes"),
    37: _made("uint1", "<u1", 1, 9, "bytes"),
    38: _made("uint6", "<u1", 6, 13, "bytes"),
    39: _made("uint3", "<u1", 3, 12, "bytes"),
}
# Numbers of ArrayDataType in FeatureTypes.proto.
FEATURES: Mapping[int, ElementType] = {65568: FLOAT32, 65552: FLOAT16, 131104: INT32}
BY_NAME: Mapping[str, ElementType] = {element.name: element for element in ELEMENTS.values()}


@dataclass(frozen=True)
class TensorType:
    """Element type and shape, which is fixed in these packages."""

    element: ElementType
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Memory of a value while it is evaluated; half precision is computed in float32."""
        return math.prod(self.shape) * max(self.element.dtype.itemsize, 4)

    def __str__(self) -> str:
        return f"{self.element.name} {list(self.shape)}"


def read_type(message: Message) -> TensorType:
    """A ValueType of MIL.proto.

    Raises:
        OperationUnknown: lists, states and other types than tensors, flexible shapes, element types not known here.
        BundleDamaged: a shape that cannot be.
    """
    if 1 not in message:
        raise OperationUnknown(f"{message.where} is a list, a state or nothing, and only tensors are evaluated here")
    tensor = message.message(1)
    number = tensor.integer(1)
    if number not in ELEMENTS:
        raise OperationUnknown(f"{message.where} has elements of MIL's type {number}, which is not evaluated here")
    dimensions = tensor.messages(3)
    if any(1 not in dimension for dimension in dimensions):
        raise OperationUnknown(f"{message.where} is of a flexible shape, and only fixed shapes are evaluated here")
    shape = tuple(dimension.message(1).integer(1) for dimension in dimensions)
    check_shape(shape, message.where)
    if tensor.integer(2) != len(shape):
        raise BundleDamaged(f"{message.where} says that it has {tensor.integer(2)} axes and lists {len(shape)}")
    return TensorType(ELEMENTS[number], shape)


def check_shape(shape: Shape, where: str) -> None:
    """Refuse a shape that no tensor of these models has.

    Raises:
        BundleDamaged: too many axes, a negative one, or too many elements.
    """
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or math.prod(shape) > MAX_ELEMENTS:
        raise BundleDamaged(f"{where} is said to have the shape {list(shape[:MAX_RANK])}, which cannot be")
