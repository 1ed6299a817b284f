"""Changes of adapters in turns: the method that questions about swaps share.

A turn makes a change, timed around the program's own call for it, and then runs two steps of one row at the
smallest latents. What the first of them takes beyond the second is what the call put off; for programs whose
swap happens inside the next step (`lazy`) it is the swap.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from benchmarks.bench import SMALLEST, Bench, Player
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, Line, in_turns, spread, unable
from benchmarks.models import Model

ROWS = 1

Change = Callable[[Player, int], float]
"""Makes the change of so many turns ago plus one; returns seconds."""


@dataclass
class Turns:
    """The turns of one contestant and one change.

    Attributes:
        late: what the first step after each change took beyond the second, in seconds.
        moved: the bytes that the last change copied; None where the program does not tell.
    """

    player: Player
    change: Change
    late: list[float] = field(default_factory=list)
    moved: int | None = None

    def take(self) -> float:
        """One turn; seconds of the change."""
        seconds = self.change(self.player, len(self.late))
        self.moved = self.player.moved
        first, second = self.player.steps(SMALLEST, ROWS, 2)
        self.late.append(first - second)
        lazy = CONTESTANTS[self.player.worker.name].lazy
        return seconds + max(0.0, first - second) if lazy else seconds

    def facts(self, count: int) -> dict[str, Any]:
        """What the line says beside the seconds of so many turns, the last ones."""
        lazy = CONTESTANTS[self.player.worker.name].lazy
        return {"later": spread(self.late[-count:]), "lazy": lazy, "moved": self.moved, **self.player.facts}


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
        turns: dict[tuple[str, str], Turns] = {}
        for name, (title, change) in itertools.product(group, changes.items()):
            tried = _tried(players[name], change)
            if isinstance(tried, Turns):
                turns[name, title] = tried
            elif name not in seen:
                yield unable(question, model.name, name, title, tried)
        made, lost = in_turns(
            {key: turn.take for key, turn in turns.items()}, bench.rounds, f"{question}, {model.name}"
        )
        yield from (unable(question, model.name, name, title, why) for (name, title), why in lost.items())
        for (name, title), values in made.items():
            if name in seen:
                continue
            against = (name, own[title]) if title in own else (reference, title)
            beside = made.get(against, ())
            what = ": ".join(against) if len(beside) else ""
            facts = turns[name, title].facts(len(values))
            yield Line(question, model.name, name, title, "s", values, beside, what, facts).to_json()
        seen |= {*group}


def _tried(player: Player | str, change: Change) -> Turns | str:
    """The turns, of which one was taken; or why the change cannot be made."""
    if isinstance(player, str):
        return player
    turns = Turns(player, change)
    try:
        turns.take()
    except (Cannot, Failed) as reason:
        return str(reason)
    return turns
