"""20,000 hostile files, with their memory and time: `python -m tests.fuzz [--files N] [--first N]`, or `make fuzz`.

Question: is every file refused in a sentence or loaded with finite numbers, within memory and time in proportion to it?
Method: each mutation in turn of each seed that it suits in turn; every file is read twice, once under tracemalloc, once
under a clock. Result: a table of mutations by outcomes; exit code 1 if any file breaks the promise (trial.py has it).
"""

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .large import LARGE
from .plan import hostile
from .seeds import Seed, seeds
from .trial import Outcome, outcome, trial, write
from .world import small_bundle


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--files", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Outcomes()
        start = time.perf_counter()
        small(chosen.files, chosen.first, Path(folder), outcomes)
        large(Path(folder), outcomes)
        outcomes.show(time.perf_counter() - start)
    return 1 if outcomes.faults else 0


def small(files: int, first: int, folder: Path, outcomes: "Outcomes") -> None:
    """Mutations of small files."""
    bundle = small_bundle(folder)
    every = seeds(bundle, folder)
    for seed in every:  # what is kept from file to file is made now
        outcome(seed, write(seed, seed.blob, _settings(seed), folder), len(seed.blob), bundle, timed=True)
    trial(every[0], "another module", 0, bundle, folder, timed=True)  # the layers of all known families, once
    gc.disable()  # so that no file pays for another
    for mutation, seed, number in hostile(every, files, first):
        timed = trial(seed, mutation, number, bundle, folder, timed=True)
        measured = trial(seed, mutation, number, bundle, folder)
        outcomes.add(mutation, f"#{number} of {seed.name} ({seed.form})", timed, measured)
        if number % 500 == 0:
            gc.collect()
    gc.enable()


def large(folder: Path, outcomes: "Outcomes") -> None:
    """Files of the size that people have."""
    bundle = small_bundle(folder)
    print(f"{'large files':50} {'MB':>6} {'result':>20} {'peak MB':>8} {'x file':>7} {'ms/MB':>6}")
    for make in LARGE.values():
        seed = make()
        path = write(seed, seed.blob, None, folder)
        timed = min((outcome(seed, path, len(seed.blob), bundle, timed=True) for _ in range(2)), key=lambda one: one.ms)
        measured = outcome(seed, path, len(seed.blob), bundle)
        outcomes.add("large files", seed.name, timed, measured)
        size = measured.size / 1e6
        figures = f"{measured.peak / 1e6:8.1f} {measured.peak / measured.size:7.2f} {timed.ms / size:6.1f}"
        print(f"{seed.name:50} {size:6.1f} {measured.result:>20} {figures}")


def _settings(seed: Seed) -> bytes | None:
    return seed.draft.settings.encode() if seed.draft and seed.draft.settings is not None else None


class Outcomes:
    """What became of all files, by mutation, and what broke the promise."""

    def __init__(self) -> None:
        self.results: dict[str, Counter[str]] = {}
        self.memory: dict[str, float] = {}
        self.time: dict[str, float] = {}
        self.faults: list[str] = []
        self.size = self.files = 0

    def add(self, mutation: str, name: str, timed: Outcome, measured: Outcome) -> None:
        for key in (mutation, "all"):
            self.results.setdefault(key, Counter())[measured.result] += 1
            self.memory[key] = max(self.memory.get(key, 0), measured.memory)
            self.time[key] = max(self.time.get(key, 0), timed.time)
        self.files += 1
        self.size += measured.size
        self.faults += [f"{mutation} {name}: {one.fault}" for one in (timed, measured) if one.fault]

    def show(self, seconds: float) -> None:
        """A table: how many files of each mutation ended how, and the largest part used of what the promise allows."""
        columns = [name for name, _ in self.results["all"].most_common()]
        print(f"\n{'':28}", *(f"{name.removeprefix('Adapter'):>13}" for name in columns), f"{'memory':>7} {'time':>5}")
        for mutation, counted in sorted(self.results.items(), key=lambda item: item[0] == "all"):
            row = " ".join(f"{counted[name] or '':>13}" for name in columns)
            print(f"{mutation:28} {row} {self.memory[mutation]:7.0%} {self.time[mutation]:5.0%}")
        print(
            f"{self.files} files of {self.size / 1e6:.0f} MB in {seconds:.0f} s, {len(self.faults)} break the promise"
        )
        print("\n".join(self.faults))


if __name__ == "__main__":
    sys.exit(main())
