"""Adapters -> a plain checkpoint that has them in its weights, for programs that want one.

    W' = W + sum multiplier (W'_1 - W)

Files, names, dtypes and everything that is no weight stay as they are.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import AdapterMismatch, CheckpointError, RequestError
from lora_edge.slots import Slot
from lora_edge.tensorfile import TensorFile
from lora_edge.tools.checkpoint import Checkpoint, canonical
from lora_edge.tools.combine import (
    Held,
    Multiplied,
    bias_change,
    changes_weight,
    check_fitted,
    forms_of,
    needs_weight,
    norm_changes,
    weight_change,
)
from lora_edge.tools.report import Over
from lora_edge.tools.write import WRITABLE, encode, fresh_folder

# Files that hold weights in ways that are not rewritten: a copy would still be the base.
OTHER_WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf"}

ChangeOf = Callable[[], Array]  # what is added to a tensor, float64 in its shape


@dataclass(frozen=True)
class Baked:
    """A checkpoint that was made.

    Attributes:
        path: the folder.
        changed: how many tensors of each component differ from the base's.
        left_out: files of the base that hold weights and were not copied, as they would still be the base.
    """

    path: Path
    changed: Mapping[str, int]
    left_out: tuple[str, ...]


def bake(
    base: Checkpoint, out: str | Path, adapters: Sequence[Multiplied], *, overwrite: bool = False, over: Over = iter
) -> Baked:
    """Write a copy of a checkpoint with adapters added to its weights.

    Every variant (`model.fp16.safetensors`) and shard is changed, each in its own dtypes, one tensor at a time.

    Args:
        base: the checkpoint.
        out: the folder to write; it appears when it is whole.
        adapters: fitted to `base`.
        overwrite: replace a checkpoint that is already there.
        over: goes through the files of weights.

    Raises:
        AdapterMismatch: a bias for a layer that has none, words, which no layer holds, or an adapter that was fitted to
            another base.
        AdapterValueError: numbers too large for the checkpoint's dtype.
        CheckpointError: a weight in a dtype that is not written, or missing from a variant.
        RequestError: `out` exists, lies inside the base, or cannot be written.
    """
    out = Path(out)
    check_fitted(adapters, base.tables)
    _refuse_words(adapters)
    own, other = out.resolve(), base.folder.resolve()
    if own.is_relative_to(other) or other.is_relative_to(own):
        raise RequestError(f"{out} and the base {base.folder} lie inside each other; choose another place")
    changes = {table.component: _changes(base, table.component, adapters) for table in base.tables}
    _check(base, changes)
    rewritten = {
        (component, file)
        for component, tensors in changes.items()
        for weights in base.variants[component] if tensors
        for file in weights.files
    }  # fmt: skip
    marks = ("model_index.json", f"{base.tables[0].component}/config.json")
    mark = next(mark for mark in marks if (base.folder / mark).is_file())
    with fresh_folder(out, overwrite, RequestError, mark) as partial_folder:
        paths = {file.path for _, file in rewritten}
        left_out = tuple(_copied(base.folder, partial_folder, paths, [name for name in changes if changes[name]]))
        for component, file in over(sorted(rewritten, key=lambda pair: pair[1].path)):
            target = partial_folder / file.path.relative_to(base.folder)
            shutil.copyfile(file.path, target)
            _add(component, file, changes[component], target)
    return Baked(out, {component: len(tensors) for component, tensors in changes.items()}, left_out)


def _refuse_words(adapters: Sequence[Multiplied]) -> None:
    """Words that a file teaches have no place in a checkpoint's layers."""
    for adapter in (each.adapter for each in adapters):
        if adapter.embeddings:
            names = ", ".join(repr(embedding.name) for embedding in adapter.embeddings)
            where = adapter.path or adapter.name
            raise AdapterMismatch(f"{where} brings the words {names}, which no layer can hold; leave that file out")


def _changes(base: Checkpoint, component: str, adapters: Sequence[Multiplied]) -> dict[str, ChangeOf]:
    """Name of a tensor -> what is added to it, for one component."""
    parts = [each.part(component) for each in adapters]
    table = next(table for table in base.tables if table.component == component)
    made: dict[str, ChangeOf] = {}
    for slot in table:
        held = forms_of(parts, slot.name)
        if (bias := bias_change(held)) is not None:
            if not slot.has_bias:
                raise AdapterMismatch(
                    f"{slot.name} of {component} has no bias that an adapter's could be added to; a checkpoint of this "
                    "architecture cannot hold it, a bundle can"
                )
            made[f"{slot.name}.bias"] = partial(np.asarray, bias)
        if changes_weight(held):
            made[f"{slot.name}.weight"] = partial(_weight_change, base, component, slot, held)
    for path, leaves in norm_changes(parts).items():
        made |= {f"{path}.{leaf}": partial(np.asarray, change) for leaf, change in leaves.items()}
    return made


def _weight_change(base: Checkpoint, component: str, slot: Slot, held: Held) -> Array:
    return weight_change(slot, held, base.weight(component, slot.name) if needs_weight(held) else None)


def _check(base: Checkpoint, changes: Mapping[str, Mapping[str, ChangeOf]]) -> None:
    """Whatever can be refused is refused before anything is written."""
    for component, tensors in changes.items():
        for weights in base.variants[component] if tensors else ():
            where = weights.files[0].path
            for name in tensors:
                if name not in weights.places:
                    raise CheckpointError(f"{where} has no {name}, which {base.weights(component).files[0].path} has")
                if (dtype := weights.dtype(name)) not in WRITABLE:
                    raise CheckpointError(f"{where} has {name} in {dtype}; {', '.join(WRITABLE)} are written")


def _add(component: str, file: TensorFile, changes: Mapping[str, ChangeOf], target: Path) -> None:
    """Add the changes to a copy of a file, in place: header, order and all other bytes stay."""
    with target.open("r+b") as copy:
        for name in file.names:
            if change := changes.get(canonical(component, name)):
                added = file.read(name).astype(np.float64) + change().reshape(file.shape(name))
                copy.seek(file.header.data_start + file.header.entries[name].start)
                copy.write(encode(added, file.dtype(name), f"{name} of {file.path}").tobytes())


def _copied(folder: Path, target: Path, rewritten: set[Path], changed: Sequence[str]) -> Iterator[str]:
    """Copy all but the files that are rewritten; yields those that would still be the base.

    These are other files of weights beside the changed ones, and whole models at the top. Hidden entries are other
    programs' bookkeeping.
    """
    stale = {folder, *(folder / component for component in changed)}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        if path.is_dir():
            (target / inner).mkdir(exist_ok=True)
        elif path not in rewritten and path.suffix.lower() in OTHER_WEIGHTS and path.parent in stale:
            yield inner.as_posix()
        elif path not in rewritten:
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inner)
