"""Changes of adapters in turns: the method that questions about swaps share.

A turn makes a change, timed around the program's own call for it, and then runs two steps of one row at the
smallest latents. What the first of them takes beyond the second is what the call put off; for programs whose
swap happens inside the next step (`lazy`) it is the swap.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from benchmarks.bench import Bench, Player
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Line, in_turns, spread, unable
from benchmarks.models import Model
from benchmarks.workers import Failed

LATENTS, ROWS = 8, 1

Change = Callable[[Player, int], float]
"""Makes the change of so many turns ago plus one; returns seconds."""


def measure_changes(
    bench: Bench,
    question: str,
    model: Model,
    names: tuple[str, ...],
    reference: str,
    changes: Mapping[str, Change],
    own: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[dict[str, Any]]:
    """Lines of every change of every contestant.

    Args:
        reference: the contestant whose same change ratios are made with, in the same rounds.
        changes: title -> change.
        own: titles of changes whose ratio is made with another one of the same contestant.
    """
    seen: set[str] = set()
    for group in bench.groups(names, (reference,), model):
        players = bench.players(group, model)
        late: dict[tuple[str, str], list[float]] = {}
        turns = {}
        for name, (title, change) in itertools.product(group, changes.items()):
            player, key = players[name], (name, title)
            take = partial(_turn, player, change, itertools.count(), late.setdefault(key, []), CONTESTANTS[name].lazy)
            why = _tried(player, take)
            if why is None:
                turns[key] = take
            elif name not in seen:
                yield unable(question, model.name, name, title, why)
        made = in_turns(turns, bench.rounds, f"{question}, {model.name}")
        for (name, title), values in made.items():
            player = players[name]
            if name in seen or not isinstance(player, Player):
                continue
            against = (name, own[title]) if title in own else (reference, title)
            beside = made.get(against, ())
            after = late[name, title][-len(values) :]
            facts = {"later": spread(after), "lazy": CONTESTANTS[name].lazy, **player.facts}
            what = ": ".join(against) if len(beside) else ""
            yield Line(question, model.name, name, title, "s", values, beside, what, facts).to_json()
        seen |= {*group}


def _turn(player: Player, change: Change, count: "itertools.count[int]", late: list[float], lazy: bool) -> float:
    seconds = change(player, next(count))
    first, second = player.steps(LATENTS, ROWS, 2)
    late.append(first - second)
    return seconds + max(0.0, first - second) if lazy else seconds


def _tried(player: Player | str, take: Callable[[], float]) -> str | None:
    """Why a change cannot be made, found by making it."""
    if isinstance(player, str):
        return player
    try:
        take()
    except (Cannot, Failed) as reason:
        return str(reason)
    return None
