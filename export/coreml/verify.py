"""Saved packages against torch: their ports against what was meant, their numbers through the evaluator.

Torch computes with merged weights (W + multiplier * down @ up, summed in float64), so that a slot that is wired wrongly
shows. What an accelerator does inside its kernels is not reproduced; see `lora_edge.mil`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import VerificationError
from lora_edge.export.changed import changed_while_used
from lora_edge.export.coreml.convert import NUMPY
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.ports import SCALE, Pair, Port
from lora_edge.export.coreml.programs import Program
from lora_edge.export.verify import Outcome
from lora_edge.mil import Package
from lora_edge.mil.evaluate import Precision

BOUND = {"fp32": 1e-5, "fp16": 1e-2}  # largest error, of outputs below 1; relative to the largest value above
EFFECT = 0.05  # and at most this part of what the adapters change
DECIBELS = {6: 30.0, 4: 20.0}  # bits of palettized weights -> least PSNR; its peak is from least to largest value
CHANGE = 0.6  # and for adapters on them, part of the change they make; a wrong wire errs by the whole of it

EVALUATED: Mapping[str, Precision] = {"fp32": "f32", "fp16": "f16"}

Lanes = Mapping[str, tuple[FloatArray, FloatArray]]  # slot -> down [patch, r], up [r, out]


@dataclass(frozen=True)
class Case:
    """One comparison: adapters of these ranks on every slot, with a multiplier each."""

    name: str
    adapters: tuple[tuple[int, float], ...] = ()
    timestep: float | None = None


CASES = (
    Case("no adapter"),
    Case("no adapter, timestep 1", timestep=1),
    Case("no adapter, timestep 981", timestep=981),
    Case("one adapter of rank 4", ((4, 1.0),)),
    Case("adapters of ranks 4 and 8 at 0.75 and -0.5", ((4, 0.75), (8, -0.5))),
)


@dataclass(frozen=True)
class Compared(Outcome):
    """An outcome with its limit.

    Attributes:
        allowed: for `error`.
        effect: how much the adapters change in torch; 0 without adapters.
        measure: whether `error` is the largest one or, where weights are palettized, the root of the mean square: of
            the output, or of the change that adapters make.
    """

    allowed: float
    effect: float = 0.0
    measure: str = "max"


def verify(
    program: Program,
    packages: Sequence[Package],
    options: Options,
    report: Callable[[Compared], None] = lambda outcome: None,
) -> list[Compared]:
    """Compare ports, then numbers in every case that the program has.

    Args:
        program: what was converted.
        packages: in the order in which they run; one, or two halves.
        options: of the export.
        report: called with each outcome as it is known.

    Raises:
        VerificationError: a port differs, or an error is above its limit.
    """
    check_ports(program, packages)
    bench = Bench(program, packages, options)
    outcomes = []
    timed = any(port.name == "timestep" for port in program.inputs)
    for case in CASES:
        if (case.adapters and not program.pairs) or (timed and not case.adapters) != (case.timestep is not None):
            continue
        outcomes.append(bench.compare(case))
        report(outcomes[-1])
        if not outcomes[-1].error <= outcomes[-1].allowed:
            raise VerificationError(
                f"{packages[0].path.name} differs from torch by {outcomes[-1].error:.1e} ({case.name}); at most "
                f"{outcomes[-1].allowed:.1e} is allowed, so nothing was written"
            )
    return outcomes


def check_ports(program: Program, packages: Sequence[Package]) -> None:
    """Names, shapes, types, optional flags and defaults of saved packages, as the program has them.

    Raises:
        VerificationError: names the first that differs.
    """
    wanted = {port.name: port for port in (*program.inputs, *program.adapter_ports)}
    handed: set[str] = set()
    for package in packages:
        for name, port in package.inputs.items():
            found = Port(name, tuple(port.shape), port.dtype, port.default if port.optional else None)  # type: ignore[arg-type]
            if name not in handed and found != wanted.get(name):
                raise VerificationError(
                    f"{package.path.name} was saved with {found}, and {wanted.get(name, 'no such input')} was meant"
                )
        handed.update(package.outputs)
    lost = set(wanted) - {name for package in packages for name in package.inputs}
    outputs = packages[-1].outputs
    if lost or set(outputs) != set(program.outputs) or any(port.dtype != "fp32" for port in outputs.values()):
        raise VerificationError(
            f"{packages[-1].path.name} was saved without {', '.join(sorted(lost)) or 'its outputs in float32'}"
        )


class Bench:
    """Runs a program and its packages on the same inputs.

    Args:
        precision: that packages are evaluated in; by default that of the export. "f64" wants a reference in float64.
    """

    def __init__(
        self, program: Program, packages: Sequence[Package], options: Options, precision: Precision | None = None
    ) -> None:
        self.program, self.packages, self.options = program, packages, options
        self.precision: Precision = precision or EVALUATED[options.precision]

    def compare(self, case: Case) -> Compared:
        """One case, with adapters drawn for it; of the output that errs most, relative to what is allowed."""
        random = np.random.default_rng(len(case.adapters))
        adapters = [self.draw(rank, random) for rank, _ in case.adapters]
        multipliers = [multiplier for _, multiplier in case.adapters]
        inputs = self.inputs(case.timestep)
        got = self.run(inputs, self.feeds(adapters, multipliers) if adapters else {})
        expected = self.torch(inputs, adapters, multipliers)
        palettized = self.options.palettize if self.program.component == "unet" else None
        judge = self._judge_change if palettized and adapters else self._judge_coarse if palettized else self._judge
        told = [judge(case, name, got[name], expected[name]) for name in self.program.outputs]
        return max(told, key=lambda outcome: outcome.error / outcome.allowed)

    def _judge(self, case: Case, name: str, got: Array, expected: Array) -> Compared:
        precision, largest = self.options.precision, float(np.abs(expected).max())
        effect = float(np.abs(expected - self._torch_base[name]).max()) if case.adapters else 0.0
        limit = BOUND[precision] * max(1.0, largest)
        if case.adapters:
            limit = min(limit, EFFECT * effect)
        return Compared(case.name, float(np.abs(got.astype(np.float64) - expected).max()), largest, limit, effect)

    def _judge_coarse(self, case: Case, name: str, got: Array, expected: Array) -> Compared:
        limit = float(np.ptp(expected)) * 10 ** (-DECIBELS[self.options.palettize or 6] / 20)
        return Compared(case.name, _rms(got, expected), float(np.abs(expected).max()), limit, measure="rms")

    def _judge_change(self, case: Case, name: str, got: Array, expected: Array) -> Compared:
        """Palettized weights move the base further than an adapter does, so the change it makes is looked at alone."""
        base, plain = self._torch_base[name], self._package_base[name]
        effect = _rms(expected, base)
        error = _rms(got.astype(np.float64) - plain, expected.astype(np.float64) - base)
        largest = float(np.abs(expected).max())
        return Compared(case.name, error, largest, CHANGE * effect, effect, "rms of the change")

    @cached_property
    def _torch_base(self) -> dict[str, Array]:
        return self.torch(self.program.example, (), ())

    @cached_property
    def _package_base(self) -> dict[str, Array]:
        return self.run(self.program.example, {})

    def run(self, inputs: Sequence[Tensor], adapters: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate the packages one after another: each is given what it takes of the inputs and of earlier outputs."""
        named = zip(self.program.inputs, inputs, strict=True)
        values: dict[str, Array] = {port.name: x.numpy().astype(NUMPY[port.dtype]) for port, x in named}
        values.update(adapters)
        for package in self.packages:
            taken = {name: values[name] for name in package.inputs if name in values}
            values.update(package.run(taken, self.precision))
        return {name: values[name] for name in self.program.outputs}

    def torch(
        self, inputs: Sequence[Tensor], adapters: Sequence[Lanes], multipliers: Sequence[float]
    ) -> dict[str, Array]:
        """The checkpoint's own module, with merged weights."""
        with ExitStack() as hooks, torch.no_grad():
            for pair in self.program.pairs if adapters else ():
                slot = pair.slot.name
                parts = [(m, *lanes[slot]) for m, lanes in zip(multipliers, adapters, strict=True) if slot in lanes]
                layer = self.program.originals[slot]
                weight: Tensor = layer.weight.data  # type: ignore[assignment]
                if parts:
                    hooks.enter_context(changed_while_used(layer, partial(_merged, weight, parts)))
            exact = self.precision == "f64"
            outputs = self.program.reference(*(x.double() if exact and x.is_floating_point() else x for x in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.numpy() for name, output in zip(self.program.outputs, outputs, strict=True)}

    def feeds(self, adapters: Sequence[Lanes], multipliers: Sequence[float]) -> dict[str, Array]:
        """Adapters side by side in the bucket, the lanes that are left zero; inputs of slots without lanes left out."""
        dtype = NUMPY[self.options.precision]
        ranks = [next(iter(lanes.values()))[0].shape[1] for lanes in adapters]
        starts = np.concatenate([[0], np.cumsum(ranks)])
        scale = np.zeros(self.options.rank, dtype)
        scale[: starts[-1]] = np.repeat(np.asarray(multipliers), ranks)
        made: dict[str, Array] = {SCALE: scale}
        for pair in self.program.pairs:
            down = np.zeros((pair.slot.patch, self.options.rank), np.float32)
            up = np.zeros((self.options.rank, pair.slot.out_features), np.float32)
            for start, rank, lanes in zip(starts, ranks, adapters, strict=False):
                if pair.slot.name in lanes:
                    down[:, start : start + rank], up[start : start + rank] = lanes[pair.slot.name]
            if down.any():
                made |= {name: array.astype(dtype) for name, array in _laid_out(pair, down, up).items()}
        return made

    def draw(self, rank: int, random: np.random.Generator) -> Lanes:
        """A random adapter on every slot, as float16 has it. Its update is a small part of the weight's own spread:
        larger ones make the network chaotic, and torch in float32 would then differ from torch in float64."""
        return {pair.slot.name: self._draw(pair, rank, random) for pair in self.program.pairs}

    def _draw(self, pair: Pair, rank: int, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        slot = pair.slot
        layer = self.program.originals[slot.name]
        spread = float(layer.weight.data.std()) or 1.0  # type: ignore[operator]
        down = random.standard_normal((slot.patch, rank)) * slot.patch**-0.5
        up = random.standard_normal((rank, slot.out_features)) * 0.1 * spread * (slot.patch / rank) ** 0.5
        return down.astype(np.float16).astype(np.float32), up.astype(np.float16).astype(np.float32)

    def inputs(self, timestep: float | None) -> tuple[Tensor, ...]:
        """The program's example, at that timestep if it takes any."""
        named = zip(self.program.inputs, self.program.example, strict=True)
        timed = {"timestep"} if timestep is not None else set()
        return tuple(torch.full_like(x, timestep or 0.0) if port.name in timed else x for port, x in named)


def _laid_out(pair: Pair, down: Array, up: Array) -> dict[str, Array]:
    """down [patch, R], up [R, out] in the shapes of the pair; a convolution has its output channels first."""
    if len(pair.down.shape) == 2:
        return {pair.down.name: down, pair.up.name: up}
    return {pair.down.name: down.T.reshape(pair.down.shape), pair.up.name: up.T.reshape(pair.up.shape)}


def _rms(one: Array, other: Array) -> float:
    return float(np.sqrt(np.square(one.astype(np.float64) - other).mean()))


def _merged(weight: Tensor, parts: Sequence[tuple[float, FloatArray, FloatArray]]) -> Tensor:
    delta = sum(
        (m * (torch.from_numpy(down).double() @ torch.from_numpy(up).double()).T for m, down, up in parts),
        start=torch.zeros((), dtype=torch.float64),
    )
    return (weight.double() + delta.reshape(weight.shape)).to(weight.dtype)
