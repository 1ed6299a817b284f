"""The names that a pickle of tensors may ask for, and what they become.

torch writes a tensor as a call of `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)`, a storage
as the persistent id `("storage", type, key, device, elements)` (torch/_utils.py, torch/serialization.py). Both become
plain descriptions here, checked against each other; no byte of the numbers is looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_edge.tensorfile import DTYPES, MAX_AXES, MAX_BYTES
from lora_edge.tools.pickles import Maker, Stateful, Wrong, quoted

MAX_ATTRIBUTES = 64  # of a module; torch's own have about 20


@dataclass(frozen=True)
class Dtype:
    """`torch.float16` and its like; name: as safetensors spells it."""

    name: str


@dataclass(frozen=True)
class StorageType:
    """`torch.HalfStorage` and its like."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file.

    Attributes:
        key: what the file calls it.
        dtype: as safetensors spells it.
        size: elements.
    """

    key: str
    dtype: str
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides count elements of the tensor's own dtype."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when it lies by itself."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def storage_of(persistent_id: Any) -> Storage:
    """What a persistent id names.

    Raises:
        Wrong: anything but a whole storage, as torch has written them since 0.4.
    """
    match persistent_id:
        case ("storage", StorageType(dtype), str(key), str(), size) | (
            "storage", StorageType(dtype), str(key), str(), size, None
        ) if _is_count(size):  # fmt: skip
            return Storage(key, dtype, size)
    raise Wrong("refers to something else than a storage of numbers; nothing was run")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_AXES or not all(map(_is_count, value)):
        raise Wrong(f"gives a tensor a shape or strides that are not at most {MAX_AXES} counts")
    return tuple(value)


def _tensor(storage: Any, dtype: str, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    shape, strides = _counts(shape), _counts(strides)
    if not isinstance(storage, Storage) or not _is_count(offset) or len(shape) != len(strides):
        raise Wrong("makes a tensor of something else than a storage, an offset, a shape and strides")
    itemsize = DTYPES[dtype].itemsize
    if math.prod(axis or 1 for axis in shape) * itemsize > MAX_BYTES:
        raise Wrong(f"gives a tensor a shape too large for any memory: {quoted(list(shape))}")
    last = offset + sum((axis - 1) * stride for axis, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and (last + 1) * itemsize > storage.nbytes:
        raise Wrong(f"has a tensor that reaches to element {last} of a storage of {storage.nbytes // itemsize}")
    return StoredTensor(storage, dtype, offset, shape, strides)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    return _tensor(storage, storage.dtype if isinstance(storage, Storage) else "U8", offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> StoredTensor:
    _must_be_plain(hooks, metadata)
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> StoredTensor:
    _must_be_plain(hooks, metadata)
    if not isinstance(dtype, Dtype):
        raise Wrong("gives a tensor no dtype")
    return _tensor(storage, dtype.name, offset, shape, strides)


def _must_be_plain(hooks: Any, metadata: Any) -> None:
    if hooks or metadata:
        raise Wrong("has a tensor with hooks or conjugate or negative bits; save plain tensors")


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Wrong("makes a parameter of something else than a tensor")
    return data


def _as_it_is(items: Any) -> Any:
    if type(items) is not list:
        raise Wrong("makes a set of something else than a list")
    return items


class OrderedDict(Stateful):
    """A state dict; its one attribute `_metadata`, versions of torch's own modules, changes no tensor."""

    def set_state(self, state: dict[Any, Any]) -> None:
        if state.keys() - {"_metadata"}:
            raise Wrong("sets attributes of an OrderedDict other than _metadata")


class Module(Stateful):
    """A `torch.nn.ParameterDict` or `ParameterList`.

    Attributes:
        state: its attributes: what it holds and the hooks around that.
    """

    state: Mapping[Any, Any] = {}

    def set_state(self, state: dict[Any, Any]) -> None:
        if len(state) > MAX_ATTRIBUTES:
            raise Wrong(f"has a module of {len(state)} attributes; those that hold parameters have fewer")
        self.state = state


STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TORCH_DTYPES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

KNOWN: Mapping[str, Any] = {
    **{f"torch {name}": StorageType(dtype) for name, dtype in STORAGES.items()},
    "torch.storage UntypedStorage": StorageType("U8"),
    **{f"torch {name}": Dtype(dtype) for name, dtype in TORCH_DTYPES.items()},
    "torch._utils _rebuild_tensor": Maker(_rebuild_tensor),
    "torch._utils _rebuild_tensor_v2": Maker(_rebuild_tensor_v2),
    "torch._utils _rebuild_tensor_v3": Maker(_rebuild_tensor_v3),
    "torch._utils _rebuild_parameter": Maker(_rebuild_parameter),
    "torch._utils _rebuild_parameter_with_state": Maker(_rebuild_parameter),
    "torch Size": Maker(lambda shape=(): _counts(shape)),
    "torch.nn.modules.container ParameterDict": Maker(lambda: Module()),
    "torch.nn.modules.container ParameterList": Maker(lambda: Module()),
    "collections OrderedDict": Maker(lambda: OrderedDict()),
    "__builtin__ set": Maker(_as_it_is),  # Python 2's name, which protocol 2 writes
    "builtins set": Maker(_as_it_is),
}
