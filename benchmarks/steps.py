"""Steps in turns: the method that several questions share.

A turn makes the case's adapters active, runs one step that does not count if that changed anything, and then
the steps that do; a step is one call of the UNet with two rows for each image, as guidance needs.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.bench import Bench, Chosen, Player
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, Line, in_turns, unable
from benchmarks.models import Model

SLOW = 1.0  # seconds of a step from which fewer rounds do


@dataclass(frozen=True)
class Case:
    """What one contestant does.

    Attributes:
        contestant: its name.
        title: as lines call it.
        adapters: with multipliers.
        images: of a batch; the UNet sees twice as many rows.
        facts: for the lines.
    """

    contestant: str
    title: str
    adapters: Chosen = ()
    images: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)


def turn(player: Player, case: Case, latents: int, counted: int) -> float:
    """Seconds of a step, the median of those that count; one goes before them, as others had the machine till now."""
    rows = 2 * case.images
    player.hold(case.adapters)
    player.steps(latents, rows)
    return statistics.median(player.steps(latents, rows, counted))


def compare(
    bench: Bench,
    question: str,
    model: Model,
    latents: int,
    cases: Sequence[Case],
    reference: Mapping[Case, Case],
    slowly: int = 0,
) -> Iterator[dict[str, Any]]:
    """Lines of all cases, each beside its reference in the same rounds.

    Args:
        reference: case -> the one that its ratio is made with.
        slowly: rounds where steps are slow, at least 3; 0 for half as many as usual.
    """
    named = list(dict.fromkeys(case.contestant for case in cases))
    references = list(dict.fromkeys(case.contestant for case in reference.values()))
    seen: set[Case] = set()
    for group in bench.groups(named, references, model):
        players = bench.players(group, model)
        here = [case for case in cases if case.contestant in group]
        turns, slowest = {}, 0.0
        for case in here:
            why = _tried(players[case.contestant], case, latents)
            if isinstance(why, float):
                player = players[case.contestant]
                turns[case] = partial(turn, player, case, latents, model.counted)
                slowest = max(slowest, why)
            elif case not in seen:
                yield unable(question, model.name, case.contestant, case.title, why) | {"latents": latents}
        rounds = bench.rounds if slowest < SLOW else max(3, slowly or bench.rounds // 2)
        made, lost = in_turns(turns, rounds, f"{question}, {model.name}, {latents}x{latents}", warm=0)
        for case, why in lost.items():
            yield unable(question, model.name, case.contestant, case.title, why) | {"latents": latents}
        for case, values in made.items():
            if case in seen:  # a reference, measured again for the next group
                continue
            against = reference.get(case)
            beside = made.get(against, ()) if against else ()
            player = players[case.contestant]
            facts = {**case.facts, "latents": latents, "images": case.images, **player.facts}
            what = f"{against.contestant}: {against.title}" if against else ""
            yield Line(question, model.name, case.contestant, case.title, "s", values, beside, what, facts).to_json()
        seen |= {*here}


def _tried(player: Player | str, case: Case, latents: int) -> float | str:
    """Seconds of a first turn, which does not count, or why there is none."""
    if isinstance(player, str):
        return player
    try:
        return turn(player, case, latents, 1)
    except (Cannot, Failed) as reason:
        return str(reason)
