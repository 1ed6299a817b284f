"""The questions, in the order in which they are asked: each a file with `measure(bench, model)`, lines of results."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.bench import Bench
from benchmarks.models import Model
from benchmarks.questions import (
    batches,
    beside_peers,
    disk,
    growth,
    memory,
    multiplier,
    opening,
    quantized,
    ranks,
    step_time,
    swap,
)

Measure = Callable[[Bench, Model], Iterator[dict[str, Any]]]

QUESTIONS: Mapping[str, Measure] = {
    "disk": disk.measure,
    "step_time": step_time.measure,
    "ranks": ranks.measure,
    "growth": growth.measure,
    "beside_peers": beside_peers.measure,
    "swap": swap.measure,
    "multiplier": multiplier.measure,
    "batches": batches.measure,
    "opening": opening.measure,
    "memory": memory.measure,
    "quantized": quantized.measure,
}
