"""A package cut in two, as iPhones need it: they do not load a UNet of this size in one piece.

coremltools has a `bisect_model`, which optimizes the halves anew (and fails at some half-precision norms), makes all
their inputs required, and looks for the middle where a traced program has nothing but its constants. Here operations
and weights move as they are, so that the halves compute what the whole does, bit for bit.
"""

import copy
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lora_edge.errors import ExportError
from lora_edge.export.coreml import blobs
from lora_edge.export.coreml.mend import MODEL, drop_dead, read_model, reads

BALANCE = (0.4, 0.6)  # share of the weights that the first half may have; the fewest bytes handed over decide
# Of MIL's element types (MIL.proto DataType), those that a model may hand over -> ArrayFeatureType.ArrayDataType.
HANDED = {10: 65552, 11: 65568, 23: 131104}  # float16, float32, int32


def bisect(package: Path) -> list[Path]:
    """Replace a saved package by `<name>Chunk1.mlpackage` and `<name>Chunk2.mlpackage`.

    The second takes the first's outputs, besides those of the original inputs that it reads.

    Raises:
        ExportError: there is no place to cut at.
    """
    halves = [package.with_name(f"{package.stem}Chunk{index}.mlpackage") for index in (1, 2)]
    whole = read_model(package)
    with (package / blobs.WEIGHTS).open("rb") as weights:
        cut = _find_cut(_block(whole), weights)
        for half, first in zip(halves, (True, False), strict=True):
            model = copy.deepcopy(whole)
            (_keep_first if first else _keep_second)(model, cut)
            drop_dead(model)
            (half / blobs.WEIGHTS).parent.mkdir(parents=True)
            shutil.copyfile(package / "Manifest.json", half / "Manifest.json")
            blobs.move(weights, list(_block(model).operations), half / blobs.WEIGHTS)
            (half / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    shutil.rmtree(package)
    return halves


@dataclass(frozen=True)
class _Cut:
    """Operations before `at` make the first half; `handed` are the values that cross, by name."""

    at: int
    handed: dict[str, Any]


def _block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def _find_cut(block: Any, weights: BinaryIO) -> _Cut:
    """The place near the middle of the weights where the least is handed over."""
    operations = list(block.operations)
    last_read = {name: index for index, operation in enumerate(operations) for name in reads(operation)}
    last_read |= dict.fromkeys(block.outputs, len(operations))
    done, total = 0, sum(_weight_read(operations, weights))
    alive: dict[str, Any] = {}
    found: list[tuple[int, int, dict[str, Any]]] = []
    for index, (operation, weight) in enumerate(zip(operations, _weight_read(operations, weights), strict=True)):
        done += weight
        if not _constant(operation):
            made = {value.name: value.type for value in operation.outputs}
            alive = {name: kind for name, kind in (alive | made).items() if last_read.get(name, -1) > index}
            if BALANCE[0] * total <= done <= BALANCE[1] * total and _can_cross(alive.values()):
                found.append((sum(map(_elements, alive.values())), index + 1, alive))
    if not found:
        raise ExportError("the UNet cannot be cut in two: no place between its halves can be an output")
    _, at, handed = min(found, key=lambda place: place[:2])
    return _Cut(at, handed)


def _weight_read(operations: Sequence[Any], weights: BinaryIO) -> Iterator[int]:
    """Bytes of weights that each operation is the first to read; a trace has its constants all in front."""
    held = {
        operation.outputs[0].name: sum(blobs.size(weights, blob.offset) for blob in blobs.references(operation))
        for operation in operations
        if _constant(operation)
    }
    for operation in operations:
        yield 0 if _constant(operation) else sum(held.pop(name, 0) for name in dict.fromkeys(reads(operation)))


def _constant(operation: Any) -> bool:
    return bool(operation.type.startswith("const"))


def _can_cross(kinds: Iterable[Any]) -> bool:
    return all(kind.tensorType.dataType in HANDED and kind.tensorType.dimensions for kind in kinds)


def _elements(kind: Any) -> int:
    return math.prod(_shape(kind))


def _shape(kind: Any) -> list[int]:
    return [axis.constant.size for axis in kind.tensorType.dimensions]


def _keep_first(model: Any, cut: _Cut) -> None:
    block = _block(model)
    del block.operations[cut.at :], block.outputs[:], model.description.output[:]
    block.outputs.extend(cut.handed)
    for name, kind in cut.handed.items():
        _describe(model.description.output.add(), name, kind)


def _keep_second(model: Any, cut: _Cut) -> None:
    block = _block(model)
    kept = [operation for operation in block.operations[: cut.at] if _constant(operation)]
    kept += block.operations[cut.at :]
    del block.operations[:]
    block.operations.extend(kept)
    for name, kind in cut.handed.items():
        model.mlProgram.functions["main"].inputs.add(name=name, type=kind)
        _describe(model.description.input.add(), name, kind)


def _describe(feature: Any, name: str, kind: Any) -> None:
    feature.name = name
    feature.type.multiArrayType.shape.extend(_shape(kind))
    feature.type.multiArrayType.dataType = HANDED[kind.tensorType.dataType]
