"""The exported graph against the torch module it was made from, before anyone sees the bundle."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import VerificationError
from lora_edge.export.changed import changed_weight, changed_while_used
from lora_edge.export.memory import trim
from lora_edge.export.recipes import Recipe
from lora_edge.export.stored import LAYERS
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank, NormDelta
from lora_edge.graph import Graph
from lora_edge.mix import Mix
from lora_edge.scope import ALL, LINEAR, LOWRANK, SCOPES, Scope, norm_ports
from lora_edge.slots import SlotTable

BOUND = 2e-5  # largest error, relative to the output's largest value


Axis: TypeAlias = Literal["in", "out"] | None


@dataclass(frozen=True)
class Case:
    """One comparison: adapters of these ranks on every slot, this many rows, with or without what has no lanes."""

    name: str
    ranks: tuple[int, ...] = ()
    rows: int = 1
    gain: Axis = None  # gains over that axis, biases and norm deltas too
    narrow: bool = False  # on every second slot of the narrowest scope: the others have none beside it

    @property
    def scope(self) -> Scope:
        """The narrowest that takes what it changes."""
        if self.gain:
            return ALL
        return LINEAR if self.narrow or not self.ranks else LOWRANK


@dataclass(frozen=True)
class Outcome:
    """Largest absolute error and largest value of the output that errs most relative to its own largest value."""

    case: str
    error: float
    largest: float

    @property
    def relative(self) -> float:
        return self.error / self.largest if self.largest else self.error

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative}


CASES = (
    Case("no adapter"),
    Case("no adapter, 2 rows", rows=2),
    Case("rank 1", (1,)),
    Case("rank 4, 2 rows, own multipliers", (4,), rows=2),
    Case("rank 16", (16,)),
    Case("rank 64", (64,)),
    Case("ranks 4 and 16, 2 rows, own multipliers", (4, 16), rows=2),
    Case("ranks 4 and 16 on half the Linear and 1x1 layers, 2 rows, own multipliers", (4, 16), rows=2, narrow=True),
    Case("rank 4 with gains over inputs, biases and norms", (4,), gain="in"),
    Case("ranks 4 and 8 with gains over outputs, biases and norms, 2 rows", (4, 8), rows=2, gain="out"),
)
PLAIN, OFF = Case("2 rows", rows=2), Case("a multiplier of 0", (16,), rows=2, narrow=True)


def verify(
    graph: Graph,
    reference: "Reference",
    report: Callable[[Outcome], None] = lambda _: None,
    scope: Scope = ALL,
) -> list[Outcome]:
    """Compare in every case that the component has (those without slots have the first two).

    Args:
        graph: the exported component, opened by the caller.
        reference: what torch computes.
        report: called with each outcome as it is known.
        scope: what the graph takes; other cases are left out.

    Raises:
        VerificationError: an error above `BOUND`, or a multiplier of 0 that changes a bit.
    """
    outcomes = []
    wide = list(SCOPES.values())
    for case, expected in reference.expected.items():
        if wide.index(case.scope) > wide.index(scope):
            continue
        got = _run(graph, reference.feeds(case))
        outcome = max((_outcome(case, got[name], array) for name, array in expected.items()), key=_relative)
        report(outcome)
        outcomes.append(outcome)
        if not outcome.relative <= BOUND:
            raise VerificationError(
                f"the exported {reference.component} differs from torch by {outcome.relative:.1e} of its largest value "
                f"({case.name}); at most {BOUND:.0e} is allowed, so nothing was written"
            )
    if reference.table.slots:
        base, held = _run(graph, reference.feeds(PLAIN)), _run(graph, reference.feeds(OFF, multiplier=0.0))
        for name in base:
            if not np.array_equal(base[name], held[name]):
                raise VerificationError(f"a multiplier of 0 changes {name} of the exported {reference.component}")
    return outcomes


def _run(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What a graph makes of arrays that nobody else keeps.

    What is free goes back before and after: arrays of the next case's ranks find no room in it.
    """
    trim()
    made = graph.run(feeds)
    del feeds
    trim()
    return made


def _outcome(case: Case, got: Array, expected: FloatArray) -> Outcome:
    return Outcome(case.name, float(np.abs(got - expected).max()), float(np.abs(expected).max()))


def _relative(outcome: Outcome) -> float:
    return outcome.relative if outcome.relative == outcome.relative else np.inf  # what is no number is the worst


class Reference:
    """What torch computes in every case, with weights changed as `lora_edge.forms` defines it.

    It is computed at once, and the module is not kept: two models' weights would not fit into memory.

    Args:
        recipe: how the component was traced.
        module: what it was traced from, see `Part.load_stored`.
        table: its slots.
        example: inputs of two rows.

    Attributes:
        component: its name.
        expected: case -> output -> [rows, ...] float32.
    """

    def __init__(self, recipe: Recipe, module: nn.Module, table: SlotTable, example: tuple[Tensor, ...]) -> None:
        self.component, self.table = recipe.component, table
        self._inputs = {port.name: tensor for port, tensor in zip(recipe.inputs, example, strict=True)}
        wrapped = recipe.wrap(module)
        held = {
            recipe.canonical(name.removeprefix("model.")): (name, parameter.detach())
            for name, parameter in wrapped.named_parameters()
        }
        self._spreads = {slot.name: float(held[f"{slot.name}.weight"][1].float().std()) or 1.0 for slot in table}
        self._norms = {name: held[name][1].numpy() for name in norm_ports(table.norms)}
        outputs = [port.name for port in recipe.outputs(module)]
        self.expected: dict[Case, dict[str, FloatArray]] = {}
        for case in CASES:
            if case.ranks and not table.slots:
                continue
            parts, multipliers = self._adapters(case)
            rows = [
                _torch(
                    wrapped,
                    held,
                    table,
                    list(zip(multipliers[min(row, len(multipliers) - 1)].tolist(), parts, strict=True)),
                    tuple(tensor[row : row + 1] for tensor in example),
                )
                for row in range(case.rows)
            ]
            self.expected[case] = {
                name: np.concatenate([row[index] for row in rows]) for index, name in enumerate(outputs)
            }

    def feeds(self, case: Case, multiplier: float | None = None) -> dict[str, Array]:
        """Graph inputs of a case, all multipliers replaced by the one given."""
        plain: dict[str, Array] = {name: tensor[: case.rows].numpy() for name, tensor in self._inputs.items()}
        if not case.ranks:
            return plain
        parts, multipliers = self._adapters(case)
        given = multipliers if multiplier is None else np.full((1, len(parts)), multiplier, np.float32)
        return plain | Mix(self.table, parts, self._norms).feeds(given)

    def _adapters(self, case: Case) -> tuple[list[ComponentForms], FloatArray]:
        """The adapters of a case, the same every time, and their multipliers [rows, or 1 for all of them, adapters]."""
        random = np.random.default_rng(case.rows + sum(case.ranks))
        parts = [self._adapter(rank, case, random) for rank in case.ranks]
        rows = 1 if case.gain else case.rows
        return parts, random.uniform(0.4, 1.0, (rows, len(parts))).astype(np.float32)

    def _adapter(self, rank: int, case: Case, random: np.random.Generator) -> ComponentForms:
        """A random adapter on every slot whose update is a fifth of the weight's own spread: larger ones make the
        network chaotic, and torch in float32 would then differ from torch in float64."""

        def normal(*shape: int, scale: float) -> FloatArray:
            return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

        slots: dict[str, tuple[Form, ...]] = {}
        for slot in [slot for slot in self.table if case.scope.leaves(slot)][:: 2 if case.narrow else 1]:
            down = normal(slot.patch, rank, scale=slot.patch**-0.5)
            up = normal(rank, slot.out_features, scale=0.2 * self._spreads[slot.name] * (slot.patch / rank) ** 0.5)
            forms: list[Form] = [LowRank(down, up, scale=0.5)]
            if case.gain:
                width = slot.in_features if case.gain == "in" else slot.out_features
                forms.append(Gain(case.gain, 1 + normal(width, scale=0.05)))
                forms += [Bias(normal(slot.out_features, scale=0.02))] if slot.has_bias else []
            slots[slot.name] = tuple(forms)
        norms = {
            name: NormDelta(normal(channels, scale=0.05), normal(channels, scale=0.05))
            for name, channels in self.table.norms.items()
            if case.gain
        }
        return ComponentForms(slots, norms)


Held: TypeAlias = Mapping[str, tuple[str, Tensor]]  # contract name -> name in the module, value


def _torch(
    wrapped: nn.Module,
    held: Held,
    table: SlotTable,
    parts: Sequence[tuple[float, ComponentForms]],
    inputs: tuple[Tensor, ...],
) -> list[FloatArray]:
    """A module's outputs for one row, with its parameters changed by adapters at these multipliers."""
    forms = {slot.name: [(m, form) for m, part in parts for form in part.slots.get(slot.name, ())] for slot in table}
    small: dict[str, Tensor] = {}
    for slot in table:
        for m, form in forms[slot.name]:
            if isinstance(form, Bias):
                name, bias = held[f"{slot.name}.bias"]
                small[name] = small.get(name, bias) + m * torch.from_numpy(form.delta)
    for m, part in parts:
        for norm, delta in part.norms.items():
            for leaf, array in (("weight", delta.weight), ("bias", delta.bias)):
                name, base = held[f"{norm}.{leaf}"]
                small[name] = small.get(name, base) + m * torch.from_numpy(array)
    changes = {held[f"{name}.weight"][0].removesuffix(".weight"): given for name, given in forms.items()}
    layers = {name: layer for name, layer in wrapped.named_modules() if isinstance(layer, LAYERS)}
    room = torch.empty(max(layer.weight.numel() for layer in layers.values()))  # one for all: they are used in turn
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            changed = partial(changed_weight, layer.weight.detach(), changes.get(name, []), room)
            hooks.enter_context(changed_while_used(layer, changed))
        outputs = functional_call(wrapped, small, inputs)
    return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]
