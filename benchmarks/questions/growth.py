"""Question: how does a step grow with the number of adapters and with their total rank?

Method: 1 to 10 adapters of rank 16 side by side, and one adapter of the same total rank, in turns with the
plain graph on the same library, at the smallest latents; ratios are to the plain graph's turn right
before.
Machine: stands in every line.
Result: benchmarks/results/*/growth.*.jsonl, docs/plots/growth.png.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contestants import CONTESTANTS
from benchmarks.models import Model
from benchmarks.questions.step_time import NONE, limited, side_by_side
from benchmarks.steps import Case, compare

RANK = 16
COUNTS = (1, 2, 4, 6, 8, 10)


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    for name in limited(bench, model, "ours"):
        plain = Case(CONTESTANTS[name].limit, NONE)
        cases = [
            Case(name, f"{count} of rank {rank}", side_by_side(count, rank), facts={"adapters": count, "lanes": lanes})
            for lanes in (RANK * count for count in COUNTS)
            for count, rank in dict.fromkeys(((lanes // RANK, RANK), (1, lanes)))
        ]
        yield from compare(bench, "growth", model, model.latents[0], [plain, *cases], dict.fromkeys(cases, plain))
