"""Question: how long does it take to change a multiplier, and what does that move?

Method: one resident adapter of rank 16 goes through 21 multipliers from -1 to 1, each set as the program's
own guide says. `benchmarks/swaps.py` says what is timed; `bytes` are those that the change copied, where the
program tells.
Machine: stands in every line.
Result: benchmarks/results/*/multiplier.*.jsonl.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.adapter_files import Files, Spec
from benchmarks.bench import Bench, Player
from benchmarks.contestants import named
from benchmarks.models import Model
from benchmarks.questions.swap import RANK, REFERENCE
from benchmarks.swaps import measure_changes

COUNT = 21


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    spec = Spec(RANK)
    names = bench.chosen(named("ours", "other", "peer"), model)
    changes = {"multiplier": partial(change, spec.name, bench.adapter(model, spec))}
    yield from measure_changes(bench, "multiplier", model, names, REFERENCE, changes)


def change(name: str, files: Files, player: Player, turn: int) -> float:
    """The next of the multipliers."""
    if turn == 0:
        player.keep(name, files)
        player.activate([(name, 1.0)])
    return float(player.activate([(name, (turn % COUNT - COUNT // 2) / (COUNT // 2))])["seconds"])
