"""A tree of containers -> the flat names of a tensor file.

Names are joined by dots. A `state_dict` is taken out of what trainers wrap around it. Beside tensors, a number under a
dotted name is a tensor of its own (an alpha); every other number and text becomes metadata; None is nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from lora_edge.tensorfile import DTYPES
from lora_edge.tools.pickles import Wrong, quoted
from lora_edge.tools.torchnames import Dtype, Module, StoredTensor
from lora_edge.tools.write import Tensor

WRAPPER = "state_dict"
RESERVED = "__metadata__"
BARE = "tensor"  # the name of a tensor that lies in no dict
NUMBERS: Mapping[type, str] = {bool: "BOOL", int: "I64", float: "F64"}

MAX_DEPTH = 32
MAX_VALUES = 100_000  # counted as often as a name leads to them, however often they are shared
MAX_NAME = 1000  # characters
MAX_TEXT = 2**22  # characters of names and metadata together


@dataclass
class Flat:
    """What a file becomes.

    Attributes:
        tensors: name -> a tensor of the file, or a number as a tensor without axes.
        metadata: name -> text.
        left_out: names of the tensors beside a `state_dict`, such as an optimizer's.
    """

    tensors: dict[str, StoredTensor | Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def flatten(tree: Any) -> Flat:
    """Flat names for everything in a tree.

    Raises:
        Wrong: no tensor in it; deeper, larger or with longer names than any adapter's; a container inside itself; two
            tensors of one name; a value that is no tensor, number or text.
    """
    inner = tree.get(WRAPPER) if isinstance(tree, dict) else None
    if not isinstance(inner, dict):
        flat = _flat(tree)
    else:
        flat, around = _flat(inner), _flat({key: value for key, value in tree.items() if key != WRAPPER})
        flat.metadata = {**around.metadata, **flat.metadata}
        flat.left_out = tuple(around.tensors)
    if not flat.tensors:
        raise Wrong("holds no tensors")
    return flat


def _flat(tree: Any) -> Flat:
    flat = Flat()
    size = 0
    for count, (name, value, beside_tensors) in enumerate(_leaves(tree)):
        if count > MAX_VALUES:
            raise Wrong(f"leads to more than {MAX_VALUES} values; no adapter holds that many")
        if value is None or isinstance(value, _Container):
            continue
        if name in flat.tensors or name in flat.metadata:
            raise Wrong(f"has two values of the name {quoted(name)}")
        size += len(name)
        if isinstance(value, StoredTensor | Tensor):
            flat.tensors[name] = value
        elif type(value) in NUMBERS and beside_tensors and "." in name:
            flat.tensors[name] = _number(name, value)
        else:
            flat.metadata[name] = text = _text(name, value)
            size += len(text)
        if size > MAX_TEXT:
            raise Wrong(f"has more than {MAX_TEXT} characters of names and metadata")
    return flat


class _Container:
    """Stands for a container itself, so that empty ones are counted too."""


Leaf: TypeAlias = tuple[str, Any, bool]  # name, value, whether tensors lie beside it


def _leaves(tree: Any) -> Iterator[Leaf]:
    """Everything in a tree, in its order."""
    levels: list[Iterator[Leaf]] = [iter([("", tree, False)])]
    while levels:
        if (found := next(levels[-1], None)) is None:
            levels.pop()
            continue
        name, node, beside = found
        items = _items(node)
        if items is None:
            yield _checked(name or BARE), node, beside
            continue
        if len(levels) > MAX_DEPTH:
            raise Wrong(f"has containers inside one another, more than {MAX_DEPTH} deep, or one inside itself")
        yield name, _Container(), False
        levels.append(_children(items, f"{name}." if len(levels) > 1 else ""))


def _children(items: Mapping[Any, Any], prefix: str) -> Iterator[Leaf]:
    tensors = any(isinstance(value, StoredTensor | Tensor) for value in items.values())
    for key, value in items.items():
        yield f"{prefix}{key}", value, tensors


def _items(node: Any) -> Mapping[Any, Any] | None:
    if isinstance(node, Module):
        return _held(node)
    if isinstance(node, dict):
        return node
    return dict(enumerate(node)) if isinstance(node, list | tuple) else None


def _held(module: Module) -> Mapping[Any, Any]:
    """What a module holds, without the attributes that every module has."""
    own = {key: value for key, value in module.state.items() if key != "training" and not str(key).startswith("_")}
    parts = [module.state.get(part) for part in ("_parameters", "_buffers", "_modules")]
    return {key: value for part in (module, *parts, own) if isinstance(part, dict) for key, value in part.items()}


def _checked(name: str) -> str:
    if len(name) > MAX_NAME:
        raise Wrong(f"has a name of {len(name)} characters, {quoted(name)}")
    if name == RESERVED or not _encodable(name):
        raise Wrong(f"has the name {quoted(name)}, which safetensors cannot hold")
    return name


def _encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _number(name: str, value: float) -> Tensor:
    dtype = NUMBERS[type(value)]
    if dtype == "I64" and abs(value) >= 2**63:
        raise Wrong(f"has a number in {quoted(name)} that is too large for 64 bits")
    return Tensor(dtype, (), lambda: np.array(value, DTYPES[dtype]))


def _text(name: str, value: Any) -> str:
    if isinstance(value, Dtype):
        return value.name
    if not isinstance(value, str | int | float):
        raise Wrong(f"holds a {type(value).__name__.lower()} in {quoted(name)}, which is no tensor, number or text")
    try:
        text = str(value)
    except ValueError:
        raise Wrong(f"has a number of too many digits in {quoted(name)}") from None
    if not _encodable(text):
        raise Wrong(f"has text in {quoted(name)} that is not Unicode")
    return text
