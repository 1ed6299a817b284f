"""checkpoint -> bundle, top to bottom: load, trace once, insert the slots, write, verify against torch, rename."""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from safetensors.numpy import save
from torch import nn

from lora_edge.blockwise import Blockwise
from lora_edge.bundle import FORMAT, MANIFEST, Bundle, describe_files, fingerprint, read_component
from lora_edge.errors import ExportError
from lora_edge.export.checkpoint import Checkpoint, Part, settings_of
from lora_edge.export.coreml import write as coreml_folder
from lora_edge.export.coreml.library import library
from lora_edge.export.coreml.options import Options
from lora_edge.export.graphs import Opening, graphs, listed, openings
from lora_edge.export.memory import release
from lora_edge.export.program import write_program
from lora_edge.export.slotted import CONTRACT, COSTS, REFERENCE_ROWS, slot_table
from lora_edge.export.smaller import Smaller, shrink
from lora_edge.export.tokenizer import write_tokenizer
from lora_edge.export.trace import capture, trace
from lora_edge.export.variants import variants
from lora_edge.export.verify import Outcome, Reference, verify
from lora_edge.export.weights import write_graphs
from lora_edge.graph import OpenGraph, OpenProgram
from lora_edge.scope import ALL, norm_ports
from lora_edge.slots import ABI_VERSION, Slot, SlotTable

STAGES = ("loading", "tracing", "inserting slots", "writing", "verifying")

# Width of the text context -> the family of base models that adapters name.
FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}


@dataclass
class Listener:
    """Hears how an export goes; the command line shows it as a progress bar.

    Attributes:
        begin: called with the number of stages.
        stage: called when a stage begins, with what is being done.
        outcome: called with the component and each comparison against torch.
    """

    begin: Callable[[int], None] = field(default=lambda total: None)
    stage: Callable[[str], None] = field(default=lambda what: None)
    outcome: Callable[[str, Outcome], None] = field(default=lambda component, outcome: None)


def build(
    source: str | Path,
    target: str | Path,
    open_graph: OpenGraph,
    *,
    open_others: OpenGraph | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    coreml: Mapping[str, Any] | None = None,
    open_program: OpenProgram | None = None,
    smaller: Smaller | None = None,
) -> Bundle:
    """Export every component that the source has.

    Args:
        source: a folder in diffusers layout.
        target: the bundle to write; it appears when it is whole and verified, or not at all.
        open_graph: opens an ONNX file for the verification.
        open_others: opens those that are verified beside the first one of a component, if otherwise.
        overwrite: replace a bundle that is already there.
        listener: hears of the progress.
        coreml: settings of `export.coreml.options.Options`; None for a bundle without Core ML packages.
        open_program: opens a component's program for its verification; None for a bundle without programs for torch.
        smaller: quantized weights, or weights stored in half precision.

    Raises:
        CheckpointError: the source cannot be read, or is another architecture.
        ExportError: the target exists, torch cannot trace a component, or Core ML packages cannot be made, or
            smaller weights are asked for together with programs or packages, which have their own.
        VerificationError: the graph differs from torch.
    """
    listener, smaller = listener or Listener(), smaller or Smaller()
    if smaller.asked and (open_program or coreml is not None):
        raise ExportError("programs for torch and Core ML packages keep weights of their own: export them without this")
    options = None if coreml is None else Options(**coreml)
    if options:
        library()  # said before anything takes minutes
    checkpoint = Checkpoint.open(source)
    final = Path(target)
    _check_target(final, overwrite)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        packages = coreml_folder.stages(checkpoint) if options else 0
        listener.begin(len(checkpoint.parts) * len(STAGES) + packages + 1)
        components = {
            part.recipe.component: _export(
                part, partial, (open_graph, open_others or open_graph), open_program, listener, smaller
            )
            for part in checkpoint.parts
        }
        _copy_settings(checkpoint, partial)
        if options:
            _add_coreml(checkpoint, partial, components, options, listener)
        listener.stage("hashing and writing the manifest")
        _write_manifest(checkpoint, partial, final.name, components)
        Bundle.open(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Bundle.open(final)


def _check_target(final: Path, overwrite: bool) -> None:
    if final.exists() and not overwrite:
        raise ExportError(f"{final} exists already; pass overwrite (--force) to replace it")
    if final.exists() and not (final / MANIFEST).is_file():
        raise ExportError(f"{final} exists and is not a bundle, so it is not replaced; choose another name")


def _export(
    part: Part,
    partial: Path,
    openers: tuple[OpenGraph, OpenGraph],
    open_program: OpenProgram | None,
    listener: Listener,
    smaller: Smaller,
) -> dict[str, Any]:
    """One component: its manifest entry."""
    recipe = part.recipe

    def stage(index: int) -> None:
        listener.stage(f"{recipe.component}: {STAGES[index]}")

    stage(0)
    module = part.load_stored()
    config = settings_of(module)
    size = 2 ** len(config.get("block_out_channels", ()))
    example = recipe.example(config, 2, size)
    seen = recipe.example(config, 1, recipe.reference(config) or size)
    costs = {} if smaller.quantize else COSTS
    tables = {kind: slot_table(recipe, module, config, seen, costs.get(kind)) for kind in COSTS}
    table = tables[CONTRACT]
    shrunk = shrink(smaller, recipe, module, table, example, seen) if smaller.asked else None
    stage(1)
    captured = capture(recipe, module, example)
    model = trace(recipe, module, captured)
    stage(2)
    wanted = [one for one in variants(table) if not smaller.quantize or one.runs_on == "onnxruntime"]
    models = graphs(model, recipe, wanted, tables, shrunk)
    stage(3)
    folder = partial / recipe.component
    weights = _write_component(part, module, table, models, folder, shrunk.weights if shrunk else {})
    entry = {
        "graph": f"{folder.name}/{wanted[0].file}",
        **listed(recipe, wanted, table, models),
        "slots": [slot.to_json() for slot in table],
        "norms": dict(table.norms),
        "facts": dict(table.facts),
        "weights": weights,
        **({"smaller": shrunk.to_json(table)} if shrunk else {}),
    }
    program = None
    if open_program:
        program = write_program(captured, recipe, module, table, example, next(iter(models.values())), folder)
    del model, models, captured, shrunk
    release()
    stage(4)
    reference = Reference(recipe, module, table, example)
    del module
    written = read_component(partial, recipe.component, entry)
    opened = [*openings(written, *openers)]
    if open_program and program:
        opened.append(Opening("torch", ALL, functools.partial(open_program, written.graph, program, table)))

    outcomes: dict[str, list[dict[str, Any]]] = {}
    for one in opened:
        release()
        where = recipe.component if one.name == ALL.name else f"{recipe.component} ({one.name})"
        made = verify(one.open(), reference, functools.partial(listener.outcome, where), one.scope)
        outcomes[one.name] = [outcome.to_json() for outcome in made]
    if open_program and program:
        program["verification"] = outcomes.pop("torch")
    return {
        **entry,
        "verification": outcomes.pop(ALL.name),
        **({"verification_of_others": outcomes} if outcomes else {}),
        **({"program": program} if program else {}),
    }


def _write_component(
    part: Part,
    module: nn.Module,
    table: SlotTable,
    models: Mapping[str, ir.Model],
    folder: Path,
    packed: Mapping[str, Blockwise],
) -> dict[str, Any]:
    folder.mkdir()
    weights = write_graphs(models, table, folder, packed)
    shutil.copyfile(part.folder / "config.json", folder / "config.json")
    if table.norms:
        named = {part.recipe.canonical(name): parameter for name, parameter in module.named_parameters()}
        norms = {name: named[name].detach().numpy() for name in sorted(norm_ports(table.norms))}
        (folder / "norms.safetensors").write_bytes(save(norms))
    return weights


def _copy_settings(checkpoint: Checkpoint, partial: Path) -> None:
    if checkpoint.index:
        _write_json(partial / "model_index.json", checkpoint.index)
    scheduler = checkpoint.config("scheduler", "scheduler_config.json")
    if scheduler:
        (partial / "scheduler").mkdir()
        _write_json(partial / "scheduler" / "scheduler_config.json", scheduler)
    for folder in ("tokenizer", "tokenizer_2"):
        if (checkpoint.folder / folder).is_dir():
            write_tokenizer(checkpoint.folder / folder, partial / folder)


def _add_coreml(
    checkpoint: Checkpoint, partial: Path, components: dict[str, Any], options: Options, listener: Listener
) -> None:
    tables = {
        name: SlotTable(name, tuple(Slot.from_json(slot) for slot in entry["slots"]))
        for name, entry in components.items()
    }
    told = fingerprint(describe_files(partial))
    coreml_folder.write(checkpoint, partial, tables, told, options, listener.stage, listener.outcome)


def _write_manifest(checkpoint: Checkpoint, partial: Path, name: str, components: dict[str, Any]) -> None:
    files = describe_files(partial)
    unet = next((part.config for part in checkpoint.parts if part.recipe.component == "unet"), {})
    scheduler = checkpoint.config("scheduler", "scheduler_config.json")
    _write_json(
        partial / MANIFEST,
        {
            "format": FORMAT,
            "abi": ABI_VERSION,
            "name": name,
            "family": FAMILIES.get(unet.get("cross_attention_dim", 0), "custom"),
            "prediction_type": scheduler.get("prediction_type", "epsilon"),
            "reference": {"rows": REFERENCE_ROWS, "latent": unet.get("sample_size")},
            "components": components,
            "fingerprint": fingerprint(files),
            "files": files,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
