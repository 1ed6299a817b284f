"""Everything that can be told of an adapter without running it, as plain values ready for JSON."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_edge.adapterfile import AdapterFile, read_adapter, version
from lora_edge.basemodel import guess
from lora_edge.bundle import Bundle, sha256
from lora_edge.errors import AdapterError, AdapterFileDamaged
from lora_edge.fewsteps import advice
from lora_edge.kinds import claim
from lora_edge.library import Entry, short_hash
from lora_edge.opening import open_adapter
from lora_edge.ortfile import is_ort_adapter
from lora_edge.packhead import KEY as PACK_KEY
from lora_edge.packhead import Head
from lora_edge.sidecar import read_sidecar, split_words
from lora_edge.tensorfile import Header, read_header
from lora_edge.training import TRIGGER_KEY, facts, frequent_tags

# What a name begins with -> the component that it belongs to, as far as that can be told without a bundle.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "oft_unet_", "unet.", "diffusion_model.", "base_model.model.unet.", "down_blocks.",
             "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.", "base_model.model.down_blocks.",
             "base_model.model.mid_block.", "base_model.model.up_blocks."),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder.", "base_model.model.text_encoder.", "text_model.",
                     "base_model.model.text_model.", "encoder.layers."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2.", "base_model.model.text_encoder_2."),
    "text_encoder_3": ("lora_te3_", "text_encoder_3."),
    "transformer": ("transformer.", "lora_transformer_"),
    "embeddings": ("bundle_emb.",),
}  # fmt: skip
ORT_KIND = "onnx_adapter"  # ONNX Runtime's own files hold graph inputs and nothing of where they came from
OTHER = "unnamed"  # names that do not say their component


def card(entry: Entry, bundle: Bundle | None = None) -> dict[str, Any]:
    """What A1111's Lora tab shows of an adapter and what it leaves out; a file that cannot be read is told as well.

    Args:
        entry: of a `Library`.
        bundle: what it should fit.

    Returns:
        The same keys for every adapter. `refused` says why it cannot be read; `fits` is None without a bundle, and
        `fit` the sentence to it, `report` what becomes of the tensors.
    """
    made = _blank(entry)
    try:
        made |= _told(entry, made)
    except AdapterError as error:
        return {**made, "refused": str(error), "fits": False if bundle else None}
    return {**made, **_fit(entry.path, bundle)} if bundle else made


def inspection(path: str | Path, bundle: Bundle | None = None) -> dict[str, Any]:
    """Everything about one file: its `card`, and what is in it tensor by tensor.

    Raises:
        AdapterError: it is missing, damaged, or no adapter.
    """
    path = Path(path)
    weights = version(path)[0]
    entry = Entry(path.resolve().name if path.is_dir() else path.stem, path)
    made = _blank(entry)
    made |= _told(entry, made)
    ready = is_ort_adapter(weights)
    header = Header({}, {}, 0) if ready else read_header(weights)
    metadata, dtypes = header.metadata, Counter(tensor.dtype for tensor in header.entries.values())
    made |= {"tensors": len(header.entries) or None, "tensors_by_dtype": dict(dtypes), "dtypes": sorted(dtypes)}
    if PACK_KEY not in metadata and not ready:
        adapter = read_adapter(path)
        made |= _contents(adapter)
        made["cost"] = asdict(adapter.cost(bundle.tables)) if bundle else None
    made |= {"training": facts(metadata), "autov2": sha256(weights)[:10], "metadata": dict(metadata)}
    return {**made, **_fit(path, bundle, strict=False)} if bundle else made


def _blank(entry: Entry) -> dict[str, Any]:
    """What is known before the file itself is opened."""
    beside = read_sidecar(entry.path)
    unsayable = ["no tag in a prompt can name it while its name has : or >; rename it"]
    return {
        "name": entry.name,
        "path": str(entry.path),
        "alias": entry.alias,
        "pack": None,
        "kinds": [],
        "ranks": [],
        "base": beside.base,
        "trigger_words": list(beside.words),
        "tags": [],
        "negative": beside.negative,
        "multiplier": beside.preferred,
        "title": beside.title,
        "description": beside.description,
        "notes": beside.notes,
        "few_steps": None,
        "preview": str(beside.preview) if beside.preview else None,
        "hash": None,
        "bytes": None,
        "fits": None,
        "fit": "",
        "report": None,
        "warnings": [*beside.faults, *(unsayable if {":", ">"} & set(entry.name) else [])],
        "refused": None,
    }


def _told(entry: Entry, made: Mapping[str, Any]) -> dict[str, Any]:
    weights = version(entry.path)[0]
    if is_ort_adapter(weights):
        return {"kinds": [ORT_KIND], "hash": sha256(weights)[:12], "bytes": weights.stat().st_size}
    metadata = read_header(weights).metadata
    few = advice(entry.name.rpartition("/")[2], metadata)
    told = {
        "trigger_words": made["trigger_words"] or list(split_words([metadata.get(TRIGGER_KEY, "")])),
        "tags": [list(tag) for tag in frequent_tags(metadata)],
        "few_steps": few.sentence if few else None,
        "hash": short_hash(entry.path),
        "bytes": weights.stat().st_size,
    }
    if PACK_KEY in metadata:
        return told | _pack(metadata, weights)
    adapter = read_adapter(entry.path)
    base, summary = guess(adapter.tensors), adapter.summary()
    warnings = [*made["warnings"], base.conflict] if base.conflict else made["warnings"]
    told |= {"base": str(base) or made["base"], "warnings": warnings}
    return told | {key: summary[key] for key in ("kinds", "ranks")}


def _pack(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        head = Head.parse(json.loads(metadata[PACK_KEY]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise AdapterFileDamaged(f"{path} describes itself wrongly in {PACK_KEY}; pack the original again") from None
    ranks = {sum(lanes for lanes, _ in runs) for part in head.parts.values() for runs in part.runs.values()}
    pack = {"name": head.name, "bundle": head.source.name, "family": head.source.family, "dtype": head.dtype,
            "fingerprint": head.source.fingerprint}  # fmt: skip
    return {"pack": pack, "kinds": list(head.kinds), "ranks": sorted(ranks), "base": f"bundle {head.source.name}"}


def _fit(path: Path, bundle: Bundle, strict: bool = True) -> dict[str, Any]:
    """Whether the bundle would use every tensor, and what becomes of each."""
    try:
        adapter = open_adapter(path, bundle, strict=strict)
    except AdapterError as error:
        return {"fits": False, "fit": str(error)}
    report = adapter.report
    about = {
        "applied": len(report.applied),
        "unused": dict(report.unused),
        "warnings": list(report.warnings),
        "layers": {name: len(forms.slots) + len(forms.norms) for name, forms in adapter.components.items()},
        "bytes": adapter.nbytes,
    }
    return {"fits": not report.unused, "fit": str(report), "report": about}


def _contents(file: AdapterFile) -> dict[str, Any]:
    tensors, kinds, unread = file.tensors, Counter[str](), dict[str, str]()
    ranks, alphas = Counter[str](), Counter[str]()
    for module, leaves in file.modules.items():
        try:
            kind = claim(leaves.keys(), shapes=file.shapes(module))
        except AdapterError as error:
            unread[module] = str(error)
            continue
        kinds[kind.name] += 1
        if (rank := kind.rank(file.shapes(module))) is not None:
            ranks[str(rank)] += 1
        if "alpha" in leaves and tensors.shape(leaves["alpha"]) in ((), (1,)):
            alphas[f"{float(tensors.read(leaves['alpha']).reshape(())):g}"] += 1
    return {
        "modules": len(file.modules),
        "modules_by_kind": dict(kinds.most_common()),
        "modules_by_rank": dict(ranks.most_common()),
        "modules_by_alpha": dict(alphas.most_common()),
        "modules_by_component": dict(Counter(map(_component, file.modules)).most_common()),
        "unread_modules": unread,
        "embeddings": sorted({name.split(".")[1] for name in file.bundled}),
    }


def _component(module: str) -> str:
    return next((name for name, starts in PREFIXES.items() if module.startswith(starts)), OTHER)
