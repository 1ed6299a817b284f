"""Which mutation of which seed is which file."""

from collections.abc import Iterator, Sequence

from .mutations import NAMES, suits
from .seeds import Seed

STRIDE = 131  # prime to the number of seeds, so that few files already meet every form of them


def hostile(every: Sequence[Seed], files: int, first: int = 0) -> Iterator[tuple[str, Seed, int]]:
    """(mutation, seed, number) of as many files: the mutations in turn, each of the seeds that it suits in turn."""
    suited = {name: [seed for seed in every if suits(name, seed)] for name in NAMES}
    for number in range(first, first + files):
        name = NAMES[number % len(NAMES)]
        turn = number // len(NAMES)
        yield name, suited[name][turn * STRIDE % len(suited[name])], turn
