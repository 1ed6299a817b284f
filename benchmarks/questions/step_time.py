"""Question: what do adapters cost a step, against the same graph without LoRA inputs?

Method: lora-edge and the plain graph on the same library, in turns: without adapter, one, three and ten
adapters on attention and feed-forward layers, one LoCon (rank 32, of 3x3 convolutions 16). Ratios are to the
plain graph's turn right before. A step is one in which nothing changes but the latents; what the first one
after a change takes longer stands with the swaps (`later`).
Machine: stands in every line.
Result: benchmarks/results/*/step_time.*.jsonl, docs/benchmarks.md.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.adapter_files import Spec
from benchmarks.bench import Bench, Chosen
from benchmarks.contestants import CONTESTANTS, Role, named
from benchmarks.models import Model
from benchmarks.steps import Case, compare

NONE = "no adapter"


def side_by_side(count: int, rank: int) -> Chosen:
    """So many adapters of one rank, weighed so that they sum to one."""
    return tuple((Spec(rank, seed=seed), 1.0 / count) for seed in range(count))


BARS: dict[str, Chosen] = {
    NONE: (),
    "1 of rank 16": side_by_side(1, 16),
    "1 of rank 128": side_by_side(1, 128),
    "3 of rank 32": side_by_side(3, 32),
    "10 of rank 16": side_by_side(10, 16),
}
WIDER = {NONE: (), "1 of rank 128": side_by_side(1, 128), "LoCon 32, conv 16": ((Spec(32, 16), 1.0),)}


def limited(bench: Bench, model: Model, *roles: Role) -> tuple[str, ...]:
    """Those of the roles whose library runs the plain graph too."""
    return tuple(name for name in bench.chosen(named(*roles), model) if CONTESTANTS[name].limit)


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    for name in limited(bench, model, "ours", "wider"):
        plain = Case(CONTESTANTS[name].limit, NONE)
        whole = CONTESTANTS[name].settings.get("slots") == "all"  # rare, and the same question
        for latents in model.latents[: 1 if whole else None]:
            wanted = WIDER if CONTESTANTS[name].role == "wider" else BARS
            cases = [Case(name, title, adapters) for title, adapters in wanted.items()]
            yield from compare(bench, "step_time", model, latents, [plain, *cases], dict.fromkeys(cases, plain))
