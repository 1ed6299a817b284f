"""A `.pt2` file as data: the calls of an exported program, and where its tensors lie. Read without torch.

torch's own loader is not asked to read files from strangers: it evaluates their expressions, unpickles their constants
and compiles what they spell. The archive is a zip folder of stored entries with the program as JSON
(`models/model.json`; torch/_export/serde/schema.py of PyTorch names the fields); here the few fields that say what is
called with what become dataclasses, operators are those of `operators`, and nothing that is pickled is touched.

The weights lie beside the program, in the data file of the ONNX graph; the manifest of a bundle says where. What that
file lacks lies in the archive, as raw bytes.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged, BundleVersionError
from lora_edge.runtime.operators import ATEN, INTEGERS
from lora_edge.tools.pickles import Wrong
from lora_edge.tools.zipfolder import Span, read_folder

MAJOR = 8  # of the schema that is read; a minor version only adds
MAX_JSON = 256 << 20  # bytes
MAX_AXES = 16
SCALARS: Mapping[int, str] = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
}  # fmt: skip
"""Numbers of the schema's ScalarType -> numpy's names, which are torch's too."""


@dataclass(frozen=True)
class Ref:
    """The value that another call made, or an input or a tensor of the program."""

    name: str


@dataclass(frozen=True)
class Dtype:
    """A type of elements, by torch's name."""

    name: str


@dataclass(frozen=True)
class Device:
    """The device that the program runs on, whichever it was exported on."""


Argument: TypeAlias = "Ref | Dtype | Device | bool | int | float | str | None | tuple[Argument, ...]"


@dataclass(frozen=True)
class Call:
    """One operator, called once.

    Attributes:
        operator: as the file spells it, `torch.ops.aten.linear.default`.
        args, kwargs: what it is called with.
        results: names of what it makes; several where it returns a list.
        listed: whether it returns a list, even of one.
    """

    operator: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument]
    results: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Program:
    """An exported program.

    Attributes:
        path: the file, for messages.
        inputs: names of what a caller gives, in order.
        tensors: value -> name of the parameter, buffer or constant that it is.
        outputs: values that are returned, in order.
        calls: in order.
        held: name -> tensor of those that lie in the file itself.
    """

    path: Path
    inputs: tuple[str, ...]
    tensors: Mapping[str, str]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    held: Mapping[str, Array] = field(default_factory=dict)


_MALFORMED = (Wrong, OSError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What reading JSON of another shape than was expected raises, beside KeyError."""


def read_program(path: Path) -> Program:
    """Read a `.pt2` file of one program.

    Raises:
        BundleDamaged: it is no such file, or is truncated, or holds something that is not known here.
        BundleVersionError: its schema is another.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = {name.partition("/")[2]: span for name, span in read_folder(data).items()}
            told = _json(data, entries["models/model.json"])
            version = told["schema_version"]["major"]
            if version != MAJOR:
                raise BundleVersionError(
                    f"{path} was written in version {version!r} of torch's program format, and {MAJOR} is read; export "
                    "it again"
                )
            return _program(path, told["graph_module"], dict(_held(data, entries)))
    except BundleVersionError:
        raise
    except KeyError as error:
        raise BundleDamaged(f"{path} lacks or misspells {error.args[0]!r}; export the bundle again") from error
    except _MALFORMED as error:
        raise BundleDamaged(f"{path} is not a program that can be read: it {error}; export the bundle again") from error


def _json(data: mmap.mmap, span: Span) -> Any:
    if span.end - span.start > MAX_JSON:
        raise Wrong(f"has a description of {span.end - span.start} bytes")
    return json.loads(data[span.start : span.end])


def _program(path: Path, module: Mapping[str, Any], held: Mapping[str, Array]) -> Program:
    inputs: list[str] = []
    tensors: dict[str, str] = {}
    for item in module["signature"]["input_specs"]:
        (kind, spec), *_ = item.items()
        if kind == "user_input":
            inputs.append(str(spec["arg"]["as_tensor"]["name"]))
        else:
            tensors[str(spec["arg"]["name"])] = str(spec[_NAMES[kind]])
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in module["signature"]["output_specs"]]
    calls = tuple(map(_call, module["graph"]["nodes"]))
    known = {*inputs, *tensors}
    for call in calls:
        if strange := set(_refs((call.args, tuple(call.kwargs.values())))) - known:
            raise Wrong(f"uses {min(strange)!r} before it is made")
        known.update(call.results)
    if strange := set(outputs) - known:
        raise Wrong(f"returns {min(strange)!r}, which nothing makes")
    return Program(path, tuple(inputs), tensors, tuple(outputs), calls, held)


_NAMES = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _call(node: Mapping[str, Any]) -> Call:
    args: list[Argument] = []
    kwargs: dict[str, Argument] = {}
    for item in node["inputs"]:
        value = _argument(item["arg"])
        if item.get("kind", 1) == 1:
            args.append(value)
        else:
            kwargs[str(item["name"])] = value
    outputs = [list(item.items())[0] for item in node["outputs"]]
    listed = [kind for kind, _ in outputs] == ["as_tensors"]
    held = outputs[0][1] if listed else [value for _, value in outputs]
    results = tuple(str(value.get("name") or value["as_name"]) for value in held)
    if not results or not (node["target"] in ATEN or node["target"] in INTEGERS):
        raise Wrong(f"calls {node['target']!r} for {len(results)} results, which no program of ours does")
    return Call(node["target"], tuple(args), kwargs, results, listed)


def _refs(argument: Any) -> Iterator[str]:
    """Names that an argument refers to."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _refs(item)


def names_in(call: Call) -> set[str]:
    """Values that a call reads."""
    return set(_refs((call.args, tuple(call.kwargs.values()))))


def _argument(arg: Mapping[str, Any]) -> Argument:
    (kind, value), *_ = arg.items()
    made: Argument = _ARGUMENTS[kind](value)
    return made


def _number(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise Wrong(f"has {value!r} where a number should be")
    return value


def _int(value: Any) -> Argument:
    return int(_number(value, int))


def _float(value: Any) -> Argument:
    return float(_number(value, int, float))


def _symbol(value: Mapping[str, Any]) -> Argument:
    return Ref(str(value["as_name"])) if "as_name" in value else _int(value["as_int"])


def _all(of: Any) -> Any:
    return lambda values: tuple(of(value) for value in values)


def _tensor(value: Mapping[str, Any]) -> Argument:
    return Ref(str(value["name"]))


def _optional_tensor(value: Mapping[str, Any]) -> Argument:
    return None if "as_none" in value else _tensor(value["as_tensor"])


_ARGUMENTS: Mapping[str, Any] = {
    "as_tensor": _tensor,
    "as_tensors": _all(_tensor),
    "as_optional_tensor": _optional_tensor,
    "as_optional_tensors": _all(_optional_tensor),
    "as_none": lambda value: None,
    "as_bool": lambda value: bool(_number(value, bool)),
    "as_bools": _all(lambda value: bool(_number(value, bool))),
    "as_int": _int,
    "as_ints": _all(_int),
    "as_float": _float,
    "as_floats": _all(_float),
    "as_sym_int": _symbol,
    "as_sym_ints": _all(_symbol),
    "as_string": lambda value: str(value),
    "as_scalar_type": lambda value: Dtype(SCALARS[value]),
    "as_device": lambda value: Device(),
}


def _held(data: mmap.mmap, entries: Mapping[str, Span]) -> Iterator[tuple[str, Array]]:
    """Tensors in the archive; those on the device "meta" are not."""
    for folder, config in (("weights", "model_weights_config"), ("constants", "model_constants_config")):
        told = _json(data, entries[f"data/{folder}/{config}.json"])["config"]
        for name, entry in told.items():
            if entry["use_pickle"]:
                raise Wrong(f"has {name!r} pickled, which is not opened")
            meta = entry["tensor_meta"]
            if meta["device"]["type"] != "meta":
                span = entries[f"data/{folder}/{entry['path_name']}"]
                yield str(name), _array(data[span.start : span.end], meta, str(name))


def _array(held: bytes, meta: Mapping[str, Any], name: str) -> Array:
    shape = tuple(int(_number(axis["as_int"], int)) for axis in meta["sizes"])
    dtype = np.dtype(SCALARS[meta["dtype"]])
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    strides = [axis["as_int"] for axis in meta["strides"]]
    spread = [(a, b) for a, b, size in zip(strides, dense, shape, strict=True) if size > 1]
    whole = len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and len(held) == math.prod(shape) * dtype.itemsize
    if not whole or meta["storage_offset"]["as_int"] or any(a != b for a, b in spread):
        raise Wrong(f"has {name!r} in {len(held)} bytes, which are not {list(shape)} of {dtype}")
    return np.frombuffer(held, dtype).reshape(shape)
