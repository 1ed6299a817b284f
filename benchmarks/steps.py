"""Steps in turns: the method that several questions share.

A turn makes the case's adapters active, runs one step that does not count, and then the steps that do; a step is one
call of the UNet with two rows for each image, as guidance needs. Where steps are long, the one that does not count is
of the smallest latents: it computes all that waits for a change, and what else it finds in caches makes no difference.
A case that is told beside another one takes its turn right after that one's, every time: what the machine does to one
it most likely does to the other.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.bench import SMALLEST, Bench, Chosen, Player
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, Line, in_turns, unable
from benchmarks.models import Model

SLOW = 1.0  # seconds of a step from which fewer rounds do
LONG = 5.0  # seconds of a step that needs no other one of its size before it
TURN = 2.5  # seconds of a turn in which so many steps count as find room


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


def turn(player: Player, case: Case, latents: int, counted: int, before: int = 0) -> float:
    """Seconds of a step, the median of so many; one goes before them, as others had the machine till now.

    Args:
        before: latents of the step that goes before; 0 for the same.
    """
    rows = 2 * case.images
    player.hold(case.adapters)
    player.steps(before or latents, rows)
    return statistics.median(player.steps(latents, rows, counted))


def compare(
    bench: Bench,
    question: str,
    model: Model,
    latents: int,
    cases: Sequence[Case],
    reference: Mapping[Case, Case],
    share: int = 1,
) -> Iterator[dict[str, Any]]:
    """Lines of all cases, each beside its reference in the same rounds.

    Args:
        reference: case -> the one that its ratio is made with.
        share: of the rounds one in so many is made, and half of that where steps are slow; at least 3.
    """
    named = list(dict.fromkeys(case.contestant for case in cases))
    references = list(dict.fromkeys(case.contestant for case in reference.values()))
    seen: set[Case] = set()
    for group in bench.groups(named, references, model):
        players = bench.players(group, model)
        here = [case for case in cases if case.contestant in group]
        took: dict[Case, float] = {}
        for case in here:
            tried = _tried(players[case.contestant], case, latents)
            if isinstance(tried, float):
                took[case] = tried
            elif case not in seen:
                yield unable(question, model.name, case.contestant, case.title, tried) | {"latents": latents}
        slow = max(took.values(), default=0.0) >= SLOW
        rounds = max(3, bench.rounds // share // (2 if slow else 1))
        counted = {case: max(model.counted, int(TURN / seconds)) for case, seconds in took.items()}
        before = {case: SMALLEST if seconds >= LONG else latents for case, seconds in took.items()}
        alone = {
            case: partial(turn, players[case.contestant], case, latents, counted[case], before[case]) for case in took
        }
        turns = {case: partial(_pair, alone.get(reference.get(case)), own) for case, own in alone.items()}
        made, lost = in_turns(turns, rounds, f"{question}, {model.name}, {latents}x{latents}", warm=0)
        for case, why in lost.items():
            yield unable(question, model.name, case.contestant, case.title, why) | {"latents": latents}
        for case, pairs in made.items():
            if case in seen:  # a reference, measured again for the next group
                continue
            values = [seconds for _, seconds in pairs]
            beside = [seconds for seconds, _ in pairs if seconds is not None]
            what = f"{reference[case].contestant}: {reference[case].title}" if beside else ""
            facts = {**case.facts, "latents": latents, "images": case.images, **players[case.contestant].facts}
            yield Line(question, model.name, case.contestant, case.title, "s", values, beside, what, facts).to_json()
        seen |= {*here}


def _pair(beside: Callable[[], float] | None, own: Callable[[], float]) -> tuple[float | None, float]:
    """The turn that a case is told beside, and its own."""
    return beside() if beside else None, own()


def _tried(player: Player | str, case: Case, latents: int) -> float | str:
    """Seconds of a first turn, which does not count, or why there is none."""
    if isinstance(player, str):
        return player
    try:
        seconds = turn(player, case, latents, 1, SMALLEST)
        return seconds if seconds >= LONG else turn(player, case, latents, 1)
    except (Cannot, Failed) as reason:
        return str(reason)
