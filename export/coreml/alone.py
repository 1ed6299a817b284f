"""Is every slot of a package wired to its own layer, and to no other?

Each slot in turn gets an adapter while all others have none. Package and torch both compute in float64: some layers can
hardly change what comes out, however strong their adapter, and in float32 rounding would then hide where a wire goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import nn

from lora_edge.arrays import Array
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.programs import Program
from lora_edge.export.coreml.verify import Bench, Compared
from lora_edge.mil import Package

ALLOWED = 1e-4  # error, as a part of the adapter's effect
RANK = 4
STRONG = 0.1  # the effect that an adapter is given
STRONGEST = 256.0  # by making it at most so many times stronger
TIMESTEP = 1  # its angles are the same in float32


def each_alone(program: Program, packages: Sequence[Package], options: Options) -> Iterator[Compared]:
    """One slot after the other: of all outputs the largest error and the largest effect.

    The program's reference is in float64 until the last one is told.

    Args:
        program: what was converted, with adapter inputs.
        packages: in the order in which they run, of precision fp32.
        options: of the export.
    """
    bench = Bench(program, [package.widened() for package in packages], options, "f64")
    inputs = bench.inputs(TIMESTEP)
    with _in_float64(program.reference):
        base = bench.torch(inputs, (), ())
        for slot, (down, up) in bench.draw(RANK, np.random.default_rng(3)).items():
            weak = _gap(bench.torch(inputs, [{slot: (down, up)}], [1.0]), base)
            factor = STRONG / max(weak, STRONG / STRONGEST)
            strong = {slot: (down, up * np.float32(factor))}
            expected = bench.torch(inputs, [strong], [1.0])
            got = bench.run(inputs, bench.feeds([strong], [1.0]))
            effect = _gap(expected, base)
            largest = max(float(np.abs(array).max()) for array in expected.values())
            yield Compared(slot, _gap(got, expected), largest, ALLOWED * effect, effect)


def _gap(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    return max(float(np.abs(one[name].astype(np.float64) - right).max()) for name, right in other.items())


@contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """For a while; float32 numbers come back as they were."""
    module.double()
    try:
        yield
    finally:
        module.float()
