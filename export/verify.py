"""The exported graph against the torch module it was made from, before anyone sees the bundle."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_edge.arrays import FloatArray
from lora_edge.errors import VerificationError
from lora_edge.export.recipes import Recipe
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank, NormDelta
from lora_edge.graph import Graph
from lora_edge.mix import Mix
from lora_edge.slots import Slot, SlotTable

BOUND = 2e-5  # largest error, relative to the output's largest value


Axis: TypeAlias = Literal["in", "out"] | None


@dataclass(frozen=True)
class Case:
    """One comparison: adapters of these ranks on every slot, this many rows, with or without what has no lanes."""

    name: str
    ranks: tuple[int, ...] = ()
    rows: int = 1
    gain: Axis = None  # gains over that axis, biases and norm deltas too


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
    Case("rank 4 with gains over inputs, biases and norms", (4,), gain="in"),
    Case("ranks 4 and 8 with gains over outputs, biases and norms, 2 rows", (4, 8), rows=2, gain="out"),
)


def verify(
    graph: Graph,
    recipe: Recipe,
    module: nn.Module,
    table: SlotTable,
    example: tuple[Tensor, ...],
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Compare in every case that the component has (those without slots have the first two).

    Args:
        graph: the exported component, opened by the caller.
        recipe: how it was traced.
        module: what it was traced from.
        table: its slots.
        example: inputs of two rows.
        report: called with each outcome as it is known.

    Raises:
        VerificationError: an error above `BOUND`, or a multiplier of 0 that changes a bit.
    """
    bench = _Bench(graph, recipe, module, table)
    outcomes = []
    for case in CASES:
        if case.ranks and not table.slots:
            continue
        outcome = bench.compare(case, tuple(tensor[: case.rows] for tensor in example))
        report(outcome)
        outcomes.append(outcome)
        if not outcome.relative <= BOUND:
            raise VerificationError(
                f"the exported {recipe.component} differs from torch by {outcome.relative:.1e} of its largest value "
                f"({case.name}); at most {BOUND:.0e} is allowed, so nothing was written"
            )
    if table.slots:
        bench.check_zero(example)
    return outcomes


class _Bench:
    def __init__(self, graph: Graph, recipe: Recipe, module: nn.Module, table: SlotTable) -> None:
        self.graph, self.table = graph, table
        self.wrapped = recipe.wrap(module)
        self.names = [port.name for port in recipe.inputs]
        self.outputs = [port.name for port in recipe.outputs(module)]
        self.parameters = {
            recipe.canonical(name.removeprefix("model.")): (name, parameter.detach())
            for name, parameter in self.wrapped.named_parameters()
        }
        self.norms = {
            f"{norm}.{leaf}": self.parameters[f"{norm}.{leaf}"][1].numpy()
            for norm in table.norms
            for leaf in ("weight", "bias")
        }

    def compare(self, case: Case, inputs: tuple[Tensor, ...]) -> Outcome:
        random = np.random.default_rng(case.rows + sum(case.ranks))
        parts = [self._adapter(rank, case.gain, random) for rank in case.ranks]
        multipliers = random.uniform(0.4, 1.0, (1 if case.gain else case.rows, len(parts))).astype(np.float32)
        feeds = self._feeds(inputs) | (Mix(self.table, parts, self.norms).feeds(multipliers) if parts else {})
        got = self.graph.run(feeds)
        rows = [
            self._torch(parts, multipliers[min(row, len(multipliers) - 1)], tuple(t[row : row + 1] for t in inputs))
            for row in range(case.rows)
        ]
        worst = Outcome(case.name, 0.0, 1.0)
        for index, name in enumerate(self.outputs):
            expected = np.concatenate([row[index] for row in rows])
            error = float(np.abs(got[name] - expected).max())
            outcome = Outcome(case.name, error, float(np.abs(expected).max()))
            worst = worst if worst.relative > outcome.relative else outcome
        return worst

    def check_zero(self, inputs: tuple[Tensor, ...]) -> None:
        """A multiplier of 0 gives the base, bit for bit."""
        part = self._adapter(16, None, np.random.default_rng(0))
        off = Mix(self.table, [part]).feeds(np.zeros((1, 1), np.float32))
        base = self.graph.run(self._feeds(inputs))
        held = self.graph.run(self._feeds(inputs) | off)
        for name in self.outputs:
            if not np.array_equal(base[name], held[name]):
                raise VerificationError(f"a multiplier of 0 changes {name} of the exported {self.table.component}")

    def _feeds(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        return {name: tensor.numpy() for name, tensor in zip(self.names, inputs, strict=True)}

    def _torch(
        self, parts: Sequence[ComponentForms], multipliers: FloatArray, inputs: tuple[Tensor, ...]
    ) -> list[FloatArray]:
        """One row through torch, with parameters changed as `lora_edge.forms` defines it."""
        numbers = [float(number) for number in multipliers]
        small: dict[str, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for slot in self.table:
                forms = [
                    (m, form) for m, part in zip(numbers, parts, strict=True) for form in part.slots.get(slot.name, ())
                ]
                name, weight = self.parameters[f"{slot.name}.weight"]
                layer = self.wrapped.get_submodule(name.removesuffix(".weight"))
                if forms:
                    hooks.enter_context(changed_while_used(layer, partial(_changed_weight, slot, weight, forms)))
                for m, form in forms:
                    if isinstance(form, Bias):
                        name, bias = self.parameters[f"{slot.name}.bias"]
                        small[name] = small.get(name, bias) + m * torch.from_numpy(form.delta)
            for m, part in zip(numbers, parts, strict=True):
                for norm, delta in part.norms.items():
                    for leaf, array in (("weight", delta.weight), ("bias", delta.bias)):
                        name, base = self.parameters[f"{norm}.{leaf}"]
                        small[name] = small.get(name, base) + m * torch.from_numpy(array)
            with torch.no_grad():
                outputs = functional_call(self.wrapped, small, inputs)
        return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def _adapter(self, rank: int, gain: Axis, random: np.random.Generator) -> ComponentForms:
        """A random adapter on every slot whose update is a fifth of the weight's own spread: larger ones make the
        network chaotic, and torch in float32 would then differ from torch in float64."""

        def normal(*shape: int, scale: float) -> FloatArray:
            return (random.standard_normal(shape) * scale).astype(np.float32)

        slots: dict[str, tuple[Form, ...]] = {}
        for slot in self.table:
            spread = float(self.parameters[f"{slot.name}.weight"][1].std()) or 1.0
            down = normal(slot.patch, rank, scale=slot.patch**-0.5)
            up = normal(rank, slot.out_features, scale=0.2 * spread * (slot.patch / rank) ** 0.5)
            forms: list[Form] = [LowRank(down, up, scale=0.5)]
            if gain:
                width = slot.in_features if gain == "in" else slot.out_features
                forms.append(Gain(gain, 1 + normal(width, scale=0.05)))
                forms += [Bias(normal(slot.out_features, scale=0.02))] if slot.has_bias else []
            slots[slot.name] = tuple(forms)
        norms = {
            name: NormDelta(normal(channels, scale=0.05), normal(channels, scale=0.05))
            for name, channels in self.table.norms.items()
            if gain
        }
        return ComponentForms(slots, norms)


@contextlib.contextmanager
def changed_while_used(layer: nn.Module, changed: Callable[[], Tensor]) -> Iterator[None]:
    """Give a layer another weight for the time of its own forward: two models' weights would not fit into memory."""
    parameter = layer.weight
    base = parameter.data

    def before(*_: object) -> None:
        parameter.data = changed()

    def after(*_: object) -> None:
        parameter.data = base

    handles = (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed_weight(slot: Slot, weight: Tensor, forms: list[tuple[float, Form]]) -> Tensor:
    """W' of `lora_edge.forms`, computed in float64 and rounded once."""
    spread = {"in": (1, -1), "out": (-1, 1)}
    gain: Tensor | float = 1.0
    delta = torch.zeros(weight.shape, dtype=torch.float64)
    for m, form in forms:
        if isinstance(form, Gain):
            excess = (torch.from_numpy(form.values).double() - 1).reshape(spread[form.axis] + (1,) * (weight.dim() - 2))
            gain = gain + m * excess
        elif isinstance(form, LowRank):
            update = torch.from_numpy(form.down).double() @ torch.from_numpy(form.up).double()
            delta += m * form.scale * update.T.reshape(weight.shape)
    return (weight.double() * gain + delta).float()
