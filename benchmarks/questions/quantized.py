"""Question: what do quantized weights save, and what do they cost?

Method: bundles of the same model in fp32, int8 and int4. Weights in memory: by how much a process grows that
opens the UNet and runs one step of one row at the smallest latents. PSNR: of one step without adapter against
fp32's, over the range of the latter. A step with one adapter of rank 16, in turns. Ratios are to fp32. That
adapters on top of quantized weights stay exact is not measured here but tested
(tests/export/test_quantize_bundle.py).
Machine: stands in every line.
Result: benchmarks/results/*/quantized.*.jsonl.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import DECLARED, SMALLEST, Bench, Player, output
from benchmarks.contestants import CONTESTANTS, named
from benchmarks.fresh import measure_once
from benchmarks.harness import Line
from benchmarks.models import Model
from benchmarks.steps import Case, compare
from benchmarks.swaps import ROWS
from benchmarks.workers import Worker


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    smaller = bench.chosen(named("smaller"), model)
    reference = {name: CONTESTANTS[name].limit for name in smaller}
    names = (*dict.fromkeys(reference.values()), *smaller)
    asked = ("quantized", model, "weights in memory", "bytes", _growth, reference, names, {})
    yield from measure_once(bench, *asked, rounds=3, cold=True)
    for name in smaller:
        yield from _psnr(bench, model, reference[name], name)
    cases = {name: Case(name, "1 of rank 16", ((DECLARED, 1.0),)) for name in names}
    against = {cases[name]: cases[limit] for name, limit in reference.items()}
    if smaller:
        yield from compare(bench, "quantized", model, model.latents[0], list(cases.values()), against)


def _growth(worker: Worker, settings: dict[str, Any]) -> float:
    before = worker.ask("memory")["resident"]
    worker.open(**settings)
    worker.ask("step", latents=SMALLEST, rows=ROWS, count=1)
    return float(worker.ask("memory")["resident"]) - before


def _psnr(bench: Bench, model: Model, exact: str, name: str) -> Iterator[dict[str, Any]]:
    """10 log10(range^2 / mean square error), of one step."""
    players = bench.players([exact, name], model)
    made = [output(bench, player, (), model.latents[0]) for player in players.values() if isinstance(player, Player)]
    if len(made) == 2:
        wanted, got = made
        error = float(np.mean((got - wanted) ** 2))
        yield Line("quantized", model.name, name, "PSNR", "dB", [10 * np.log10(np.ptp(wanted) ** 2 / error)]).to_json()
