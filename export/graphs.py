"""The graphs of a component: which files there are, what the manifest says of them, and opening them to be verified."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from lora_edge.bundle import Component
from lora_edge.export.parts import PARTS, parts
from lora_edge.export.passes import PASSES
from lora_edge.export.recipes import Recipe
from lora_edge.export.slotted import Form
from lora_edge.export.smaller import Shrunk
from lora_edge.export.variants import VARIANTS, Variant
from lora_edge.graph import Graph, OpenGraph
from lora_edge.neutral import Filled
from lora_edge.parts import Parts
from lora_edge.scope import ALL, SCOPES, Scope
from lora_edge.slots import SlotTable


@dataclass(frozen=True)
class Opening:
    """One graph to verify: what it is called, what it takes, and how it is opened."""

    name: str
    scope: Scope
    open: Callable[[], Graph]


def graphs(
    model: ir.Model,
    recipe: Recipe,
    wanted: Sequence[Variant],
    tables: Mapping[tuple[str, Form], SlotTable],
    shrunk: Shrunk | None = None,
) -> dict[str, ir.Model]:
    """By file name; the first one takes the whole contract.

    Args:
        model: the traced component, which stays as it is.
        recipe: of the component.
        wanted: which graphs there are to be.
        tables: the component's slots, as they are placed for a backend and a form.
        shrunk: its smaller weights.
    """
    made: dict[str, ir.Model] = {}
    for variant in wanted:
        for form in variant.forms_of(recipe):
            whole = dressed(model, tables[variant.runs_on, form], variant, shrunk)
            made |= {variant.file: whole} if form == "whole" else _parts(variant, whole, recipe)
    return made


def _parts(variant: Variant, whole: ir.Model, recipe: Recipe) -> dict[str, ir.Model]:
    stays = [port.name for port in recipe.inputs if port.name not in recipe.varying]
    made = parts(whole, stays, recipe.varying, converts=variant.converts)
    return {variant.part(part): graph for part, graph in made.items()}


def dressed(model: ir.Model, table: SlotTable, variant: Variant, shrunk: Shrunk | None = None) -> ir.Model:
    """A variant of the traced component."""
    made = model.clone()
    for transform in PASSES:
        transform(made, table, variant)
    if shrunk:
        shrunk.dress(made, table)
    return made


def listed(
    recipe: Recipe, wanted: Sequence[Variant], table: SlotTable, written: Collection[str]
) -> dict[str, dict[str, dict[str, object]]]:
    """What the manifest says of the files that were written: backend -> scope -> file, from narrow to wide.

    A graph without slots is for every backend.
    """
    folder = recipe.component
    made: dict[Form, dict[str, dict[str, object]]] = {"whole": {}, "parts": {}}
    for variant in reversed(wanted):
        found = [f"{folder}/{file}" for file in map(variant.part, PARTS) if file in written]
        files: dict[Form, object] = {"whole": f"{folder}/{variant.file}", "parts": found}
        for form in variant.forms_of(recipe):
            made[form].setdefault(variant.runs_on, {})[variant.scope.name] = files[form]
    whole = made["whole"]
    alike = [] if table.slots else [variant.runs_on for variant in VARIANTS]
    return {"graphs": dict.fromkeys(alike, whole[wanted[0].runs_on]) | whole, "parts": made["parts"]}


def openings(component: Component, open_graph: OpenGraph, open_others: OpenGraph) -> Iterator[Opening]:
    """What is verified: every graph for onnxruntime, and of those for OpenVINO the one that takes most.

    Args:
        component: what was written.
        open_graph: opens the graph that takes the whole contract.
        open_others: opens the others; those for OpenVINO have no defaults in them.
    """
    ours, theirs = (component.parts.get(backend, {}) for backend in ("onnxruntime", "openvino"))
    for name, path in component.graphs["onnxruntime"].items():
        yield Opening(name, SCOPES[name], partial(open_graph if path == component.graph else open_others, path))
    for name, paths in ours.items():
        yield Opening(f"{name}, in parts", SCOPES[name], partial(_joined, open_others, paths))
    if component.table.slots:
        filled = partial(_filled, component, open_others)
        if ALL.name in theirs:
            yield Opening("openvino", ALL, partial(_joined, filled, theirs[ALL.name]))
        elif "openvino" in component.graphs:
            yield Opening("openvino", ALL, partial(filled, component.graphs["openvino"][ALL.name]))


def _joined(open_graph: OpenGraph, paths: Sequence[Path]) -> Graph:
    return Parts([open_graph(path) for path in paths], brief=True)


def _filled(component: Component, open_graph: OpenGraph, path: Path) -> Graph:
    return Filled(open_graph(path), component.table, component.norms())
