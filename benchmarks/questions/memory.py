"""Question: how much memory does an image take, at the peak and afterwards?

Method: a process of its own each time makes one image of the model's size, text, two steps with guidance and
decoding: the programs by their pipelines, graphs component by component, with all components open at the end
as they are after the first image. Largest resident size of the process, and the size after the image. Weights
that are mapped from files count as far as they were touched. Ratios are to the plain graph on the same
library. Peers are asked with an adapter alone.
Machine: stands in every line.
Result: benchmarks/results/*/memory.*.jsonl.
"""

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.bench import DECLARED, Bench
from benchmarks.contestants import CONTESTANTS, named
from benchmarks.fresh import measure_once
from benchmarks.models import Model
from benchmarks.workers import Worker

STEPS = 2


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    names = bench.chosen(named("ours", "other", "wider", "limit", "peer"), model)
    reference = {name: CONTESTANTS[name].limit for name in names if CONTESTANTS[name].limit}
    files = dict(bench.adapter(model, DECLARED))
    resident: dict[str, list[float]] = {}

    def image(adapter: bool, worker: Worker, settings: dict[str, Any]) -> float:
        worker.open(**settings)
        if adapter and CONTESTANTS[worker.name].role != "limit":
            worker.ask("load", key="a", files=files)
            worker.ask("activate", adapters=[["a", 1.0]])
        worker.ask("image", latents=model.picture, steps=STEPS)
        told = worker.ask("memory")
        resident.setdefault(worker.name, []).append(told["resident"])
        return float(told["peak"])

    facts = {"latents": model.picture}
    bare = tuple(name for name in names if CONTESTANTS[name].role != "peer")
    for title, adapter, able in (("no adapter", False, bare), ("1 of rank 16", True, names)):
        resident.clear()
        asked = measure_once(
            bench, "memory", model, title, "bytes", partial(image, adapter), reference, able, facts, 2, True
        )
        for line in asked:
            if "median" in line:
                line["resident"] = statistics.median(resident[line["contestant"]])
            yield line
