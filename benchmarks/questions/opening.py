"""Question: how long from nothing to the end of the first step?

Method: a process of its own each time, its libraries imported and the files in the page cache; from the call
that opens the model to the end of the first UNet step at the smallest latents. Ratios are to the plain graph
on the same library. A compiled engine that can only merge adapters and open again pays at least the plain
graph's time for every swap.
Machine: stands in every line.
Result: benchmarks/results/*/opening.*.jsonl.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contestants import CONTESTANTS, named
from benchmarks.fresh import measure_once
from benchmarks.models import Model
from benchmarks.workers import Worker


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    names = bench.chosen(named("ours", "other", "wider", "limit", "peer"), model)
    reference = {name: CONTESTANTS[name].limit for name in names if CONTESTANTS[name].limit}
    latents = model.latents[0]

    def open_and_step(worker: Worker, settings: dict[str, Any]) -> float:
        seconds = worker.open(**settings)
        return seconds + float(worker.ask("step", latents=latents, rows=2, count=1)["seconds"][0])

    facts = {"latents": latents}
    yield from measure_once(
        bench, "opening", model, "first step", "s", open_and_step, reference, names, facts, 3, False
    )
