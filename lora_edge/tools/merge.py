"""Several adapters -> one, with their multipliers folded in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_edge.arrays import Array
from lora_edge.embedding import Embedding
from lora_edge.errors import AdapterMismatch, RequestError
from lora_edge.slots import Slot
from lora_edge.tools.checkpoint import Base
from lora_edge.tools.combine import (
    Held,
    Multiplied,
    bias_change,
    check_fitted,
    forms_of,
    lanes,
    needs_weight,
    norm_changes,
    weight_change,
)
from lora_edge.tools.kohya import Change, Changes, adapter_tensors, rank_metadata, word_tensor
from lora_edge.tools.report import Layer, Made, Over
from lora_edge.tools.svd import Budget, Truncated, energy_of, single, truncate_lanes, truncate_whole
from lora_edge.tools.write import Tensor, check_file, stored_dtype, write_tensors

# Header strings about the base that are kept where all files agree on them.
BASE_KEYS = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "modelspec.architecture")


def merge(
    adapters: Sequence[Multiplied],
    base: Base,
    out: str | Path,
    budget: Budget | None = None,
    *,
    dtype: str = "fp16",
    overwrite: bool = False,
    over: Over = iter,
) -> Made:
    """Write one adapter that does what all of them do together: W + sum multiplier (W'_1 - W).

    Without a budget the sum is exact: lanes lie side by side; a layer whose change depends on the base weight (DoRA,
    IA3), or whose lanes would take more room than the whole difference, is written as that. Words that come with the
    files come with the merged one too.

    Args:
        adapters: fitted to `base`.
        base: the bundle or checkpoint that they were fitted to.
        out: the safetensors file to write, with kohya's names and alpha = rank.
        budget: truncate every layer to so many lanes.
        dtype: fp16, bf16 or fp32.
        overwrite: replace a file.
        over: goes through the layers.

    Raises:
        AdapterMismatch: an adapter was fitted to another base, or two bring the same word with other vectors.
        RequestError: nothing is left to write, or an `out` that cannot be written.
        AdapterValueError: numbers too large for the dtype.
    """
    out, stored = Path(out), stored_dtype(dtype)
    check_file(out, overwrite)
    check_fitted(adapters, base.tables)
    words = word_tensors(adapters)
    changed = [Changes(table) for table in base.tables]
    layers: list[Layer] = []
    places = [(part, slot) for part in changed for slot in part.table]
    for part, slot in over(places):
        component = part.table.component
        held = forms_of([each.part(component) for each in adapters], slot.name)
        weight = base.weight(component, slot.name) if needs_weight(held) else None
        layers += _slot(part, slot, held, weight, budget)
    for part in changed:
        part.norms.update(norm_changes([each.part(part.table.component) for each in adapters]))
    others = sum(part.others for part in changed)
    if not layers and not others and not words:
        raise RequestError("nothing is left to write: every multiplier is 0, or the adapters cancel out")
    metadata = {
        "ss_output_name": out.stem,
        "ss_network_module": "networks.lora",
        "ss_training_comment": "merge of " + ", ".join(map(str, adapters)),
        **rank_metadata(layer.rank for layer in layers if layer.rank is not None),
        **_shared_metadata(adapters),
    }
    write_tensors(out, adapter_tensors(changed, stored) | words, metadata)
    whole = [layer.name for layer in layers if layer.rank is None]
    told = f"{len(whole)} layers are written as whole differences (first: {whole[0]})" if whole else None
    return Made(out, tuple(layers), others, (f"{told}; give a rank to have lanes of them",) if told else ())


def word_tensors(adapters: Sequence[Multiplied]) -> dict[str, Tensor]:
    """Words as files bring them along, `bundle_emb.<word>.<key>`; multipliers do not concern them."""
    words: dict[str, Embedding] = {}
    for adapter in (each.adapter for each in adapters):
        for embedding in adapter.embeddings:
            known = words.setdefault(embedding.name, embedding)
            if not _same(known, embedding):
                where = f"{adapter.path or adapter.name} and a file before it"
                raise AdapterMismatch(
                    f"{where} bring other vectors for the word {embedding.name!r}; rename one of them"
                )
    return dict(word_tensor(word, component) for word in words.values() for component in word.vectors)


def _same(one: Embedding, other: Embedding) -> bool:
    return one.vectors.keys() == other.vectors.keys() and all(
        np.array_equal(array, other.vectors[component]) for component, array in one.vectors.items()
    )


def _slot(part: Changes, slot: Slot, held: Held, weight: Array | None, budget: Budget | None) -> list[Layer]:
    """Put what is written for a slot into `part`, and tell of it unless only its bias changes."""
    name, bias = f"{part.table.component}.{slot.name}", bias_change(held)
    down, up = lanes(held)
    crowded = up.shape[0] * (slot.patch + slot.out_features) > slot.patch * slot.out_features
    change, told = Change(bias=bias), []
    if weight is not None or (crowded and budget is None):
        whole = weight_change(slot, held, weight)
        if budget is None:
            energy = float(np.square(whole).sum())
            change, told = Change(whole=single(whole), bias=bias), [Layer(name, None, energy, energy)]
        else:
            flat = whole.reshape(slot.out_features, slot.patch)
            change, told = _truncated(name, truncate_whole(flat, slot.kernel or (), budget), bias)
    elif up.shape[0] and budget is None:
        energy = energy_of(down, up)
        change, told = Change((down, single(up)), bias=bias), [Layer(name, len(up), energy, energy)]
    elif up.shape[0] and budget:
        change, told = _truncated(name, truncate_lanes(down, up, slot.kernel or (), budget), bias)
    if told or bias is not None:
        part.slots[slot.name] = change
    return told


def _truncated(name: str, found: Truncated, bias: Array | None) -> tuple[Change, list[Layer]]:
    return Change((found.down, found.up), bias=bias), [Layer(name, found.rank, found.kept, found.total)]


def _shared_metadata(adapters: Sequence[Multiplied]) -> dict[str, str]:
    headers = [each.adapter.metadata for each in adapters]
    agreed = {key: {header.get(key) for header in headers} for key in BASE_KEYS}
    return {key: value for key, values in agreed.items() if len(values) == 1 and (value := next(iter(values)))}
