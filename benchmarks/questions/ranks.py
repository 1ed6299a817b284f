"""Question: how does what adapters cost a step depend on their rank?

Method: one and three adapters of ranks 4 to 128 on attention and feed-forward layers, in turns with the plain graph on
the same library, at the smallest latents; ratios are to the plain graph's turn right before.
Machine: stands in every line.
Result: benchmarks/results/*/ranks.*.jsonl, docs/benchmarks.md.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench, Chosen
from benchmarks.contestants import CONTESTANTS
from benchmarks.models import Model
from benchmarks.questions.step_time import NONE, limited, side_by_side
from benchmarks.steps import Case, compare

RANKS: dict[str, Chosen] = {
    f"{count} of rank {rank}": side_by_side(count, rank) for count in (1, 3) for rank in (4, 16, 32, 64, 128)
}


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    for name in limited(bench, model, "ours"):
        plain = Case(CONTESTANTS[name].limit, NONE)
        cases = [Case(name, title, adapters) for title, adapters in RANKS.items()]
        yield from compare(bench, "ranks", model, model.latents[0], [plain, *cases], dict.fromkeys(cases, plain))
