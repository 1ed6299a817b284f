"""Two checkpoints -> the adapter that leads from one to the other, by truncated SVD of each layer's difference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import CheckpointError, RequestError
from lora_edge.slots import SlotTable
from lora_edge.tools.checkpoint import Checkpoint, Weights, open_variants, prediction_type
from lora_edge.tools.kohya import Change, Changes, adapter_tensors, family_metadata, rank_metadata
from lora_edge.tools.report import Layer, Made, Over
from lora_edge.tools.svd import Budget, truncate_whole
from lora_edge.tools.write import check_file, same_in, stored_dtype, write_tensors

SHOWN = 3  # tensors that a warning names

AS_ASKED = "as biases and norms were not asked for"
NOT_CARRIED = "as no adapter carries it"
ONE_SIDE = "as only one checkpoint has it"


@dataclass
class _Left:
    """What differs and is not written: why -> what."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, why: str, name: str) -> None:
        self.names.setdefault(why, []).append(name)

    def sentences(self) -> Iterator[str]:
        for why, names in self.names.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"left out, {why}: {', '.join(names[:SHOWN])}{more}"


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    out: str | Path,
    budget: Budget,
    *,
    dtype: str = "fp16",
    norms: bool = True,
    overwrite: bool = False,
    over: Over = iter,
) -> Made:
    """Write the adapter that makes `tuned` of `base`.

    Every Linear and Conv whose weight differs gets lanes, biases and norms that differ are written whole. A layer that
    is equal once both are rounded to the coarser of their dtypes does not differ.

    Args:
        base, tuned: of one architecture.
        out: the safetensors file to write, with kohya's names and alpha = rank.
        budget: how many lanes.
        dtype: fp16, bf16 or fp32.
        norms: write biases and norms too; otherwise those that differ are named in the warnings.
        overwrite: replace a file.
        over: goes through the layers.

    Raises:
        CheckpointError: different architectures, or a file that cannot be read.
        RequestError: no difference at all, or an `out` that cannot be written.
        AdapterValueError: numbers too large for the dtype.
    """
    out, stored = Path(out), stored_dtype(dtype)
    check_file(out, overwrite)
    shared = _shared(base, tuned)
    parts = {table.component: Changes(table) for table in base.tables}
    layers: list[Layer] = []
    left = _Left()
    places = [(table.component, path) for table in shared for path in (*table.by_name, *table.norms)]
    for component, path in over(places):
        pair, part = (base.weights(component), tuned.weights(component)), parts[component]
        if path in part.table.norms:
            _norm(pair, path, part, left, norms)
        else:
            layers += _slot(pair, path, part, budget, left, norms)
    _others(base, tuned, shared, left)
    made = list(parts.values())
    others = sum(part.others for part in made)
    if not layers and not others:
        raise RequestError(f"{base.folder} and {tuned.folder} do not differ in anything that an adapter carries")
    facts = next((table.facts for table in base.tables if table.component == "unet"), {})
    metadata = {
        "ss_output_name": out.stem,
        "ss_network_module": "networks.lora",
        "ss_training_comment": f"difference of {tuned.folder.resolve().name} and {base.folder.resolve().name}",
        **rank_metadata(layer.rank or 0 for layer in layers),
        **family_metadata(facts, prediction_type(base.folder)),
    }
    write_tensors(out, adapter_tensors(made, stored), metadata)
    return Made(out, tuple(layers), others, tuple(left.sentences()))


Pair = tuple[Weights, Weights]


def difference(pair: Pair, name: str) -> Array | None:
    """tuned - base of one tensor, float64; None where they are equal, or equal after rounding to the coarser dtype."""
    base, tuned = (weights.read(name) for weights in pair)
    if any(same_in(weights.dtype(name), base, tuned) for weights in pair):
        return None
    return tuned.astype(np.float64) - base


def _slot(pair: Pair, path: str, part: Changes, budget: Budget, left: _Left, norms: bool) -> Iterator[Layer]:
    slot = part.table.by_name[path]
    bias = difference(pair, f"{path}.bias") if slot.has_bias else None
    if bias is not None and not norms:
        left.add(AS_ASKED, f"{path}.bias of {part.table.component}")
        bias = None
    lanes = None
    if (change := difference(pair, f"{path}.weight")) is not None:
        found = truncate_whole(change.reshape(slot.out_features, slot.patch), slot.kernel or (), budget)
        lanes = found.down, found.up
        yield Layer(f"{part.table.component}.{path}", found.rank, found.kept, found.total)
    if lanes or bias is not None:
        part.slots[path] = Change(lanes, bias=bias)


def _norm(pair: Pair, path: str, part: Changes, left: _Left, norms: bool) -> None:
    found = {
        leaf: difference(pair, f"{path}.{leaf}") for leaf in ("weight", "bias") if f"{path}.{leaf}" in pair[0].places
    }
    changed = {leaf: change for leaf, change in found.items() if change is not None}
    if changed and norms:
        part.norms[path] = changed
    for leaf in () if norms else changed:
        left.add(AS_ASKED, f"{path}.{leaf} of {part.table.component}")


def _shared(base: Checkpoint, tuned: Checkpoint) -> list[SlotTable]:
    """Tables of the components that both have, once their layers are known to be of the same shapes."""
    own = {table.component for table in tuned.tables}
    shared = [table for table in base.tables if table.component in own]
    both = f"{base.folder} and {tuned.folder}"
    if not shared:
        raise CheckpointError(f"{both} have no component in common that takes adapters")
    for table in shared:
        one, other = (_parameters(checkpoint.weights(table.component)) for checkpoint in (base, tuned))
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                shapes = " and ".join(
                    str(list(shape)) if (shape := part.get(name)) else "absent" for part in (one, other)
                )
                raise CheckpointError(f"{both} are of different architectures: {name} of {table.component} is {shapes}")
    return shared


def _parameters(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Name -> shape, without buffers, which versions of the libraries store or not."""
    return {name: weights.shape(name) for name in weights.places if name.endswith((".weight", ".bias"))}


def _others(base: Checkpoint, tuned: Checkpoint, shared: list[SlotTable], left: _Left) -> None:
    """What differs beside slots and norms: embeddings, the autoencoder, components that one side lacks."""
    for table in shared:
        pair = base.weights(table.component), tuned.weights(table.component)
        carried = {f"{path}.{leaf}" for path in (*table.by_name, *table.norms) for leaf in ("weight", "bias")}
        for name in sorted(_parameters(pair[0]).keys() - carried):
            if difference(pair, name) is not None:
                left.add(NOT_CARRIED, f"{name} of {table.component}")
    for component in sorted({table.component for table in base.tables} ^ {table.component for table in tuned.tables}):
        left.add(ONE_SIDE, component)
    folders = [checkpoint.folder / "vae" for checkpoint in (base, tuned)]
    if all(folder.is_dir() for folder in folders) and not _equal(folders):
        left.add(NOT_CARRIED, "the vae")


def _equal(folders: Sequence[Path]) -> bool:
    """Whether two components have the same weights; no, where they cannot be compared."""
    try:
        one, other = (open_variants(folder)[0] for folder in folders)
        shapes = _parameters(one)
        return shapes == _parameters(other) and all(difference((one, other), name) is None for name in shapes)
    except CheckpointError:
        return False
