"""Question: how long is a step with one adapter of rank 16, beside everybody else?

Method: all contestants hold the same adapter file at multiplier 1 and take turns with the faster of our
backends; ratios are to its turn right before. Those without adapters run without. Where they do not fit
in memory together they run in groups, our backend in each. What each computes is compared once: the
difference from ours in float32, over the change that it makes (`error`); bf16 shows there.
Machine: stands in every line.
Result: benchmarks/results/*/beside_peers.*.jsonl, docs/plots/beside_peers.png.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import DECLARED, Bench, Player, output
from benchmarks.contestants import CONTESTANTS, named
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed
from benchmarks.models import Model
from benchmarks.steps import Case, compare, turn
from lora_edge.arrays import FloatArray

TITLE = "1 of rank 16"
ADAPTER = ((DECLARED, 1.0),)
EXACT = "lora-edge-ort"


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    for latents in model.latents:
        if (best := fastest(bench, model, latents)) is None:
            return
        cases = [_case(name) for name in bench.chosen(named("ours", "other", "limit", "peer"), model)]
        exact = _exact(bench, model, latents) if latents == model.latents[0] else None
        for line in compare(bench, "beside_peers", model, latents, cases, dict.fromkeys(cases, _case(best))):
            if exact and "median" in line:
                line |= _error(bench, model, latents, exact, line["contestant"])
            yield line


def fastest(bench: Bench, model: Model, latents: int) -> str | None:
    """Which of our backends is the fastest here, by three steps each; None if none runs."""
    times = {}
    for name in bench.chosen(named("ours"), model):
        player = bench.players([name], model)[name]
        if isinstance(player, Player):
            try:
                times[name] = min(turn(player, _case(name), latents, 1) for _ in range(3))
            except (Cannot, Failed):
                continue
    return min(times, key=times.__getitem__) if times else None


def _case(name: str) -> Case:
    return Case(name, TITLE, () if CONTESTANTS[name].role == "limit" else ADAPTER)


Outputs = tuple[FloatArray, FloatArray]


def _exact(bench: Bench, model: Model, latents: int) -> Outputs | None:
    """What one step of ours makes in float32, without adapter and with it."""
    player = bench.players([EXACT], model)[EXACT] if bench.takes_part(EXACT, model) else None
    if not isinstance(player, Player):
        return None
    return output(bench, player, (), latents), output(bench, player, ADAPTER, latents)


def _error(bench: Bench, model: Model, latents: int, exact: Outputs, name: str) -> dict[str, float]:
    """The largest difference from ours in float32 over the largest change that the adapter makes there."""
    player = bench.players([name], model)[name]
    if not isinstance(player, Player) or CONTESTANTS[name].role == "limit":
        return {}
    try:
        theirs = output(bench, player, ADAPTER, latents)
    except (Cannot, Failed):
        return {}
    base, changed = exact
    return {"error": float(f"{np.abs(theirs - changed).max() / np.abs(changed - base).max():.3g}")}
