"""A sample of the hostile files that `make fuzz` makes, without a clock; and the files that they are made from."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from lora_edge.about import card, inspection
from lora_edge.bundle import Bundle
from lora_edge.errors import LoraEdgeError
from lora_edge.library import Entry
from lora_edge.tensorheader import MAX_TENSORS

from .large import LARGE, ORDINARY
from .mutations import NAMES, mutate
from .plan import hostile
from .seeds import Seed, seeds
from .trial import LOADED, Outcome, outcome, trial, write
from .world import small_bundle

FILES = 1500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def every(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return seeds(bundle, tmp_path_factory.mktemp("seeds"))


def _read(seed: Seed, bundle: Bundle, folder: Path) -> Outcome:
    settings = seed.draft.settings if seed.draft else None
    path = write(seed, seed.blob, settings.encode() if settings is not None else None, folder)
    return outcome(seed, path, len(seed.blob), bundle)


def test_the_files_that_are_mutated_are_right(every: list[Seed], bundle: Bundle, tmp_path: Path) -> None:
    assert {seed.name: (read.result, read.fault) for seed in every if (read := _read(seed, bundle, tmp_path))} == {
        seed.name: (LOADED, "") for seed in every
    }
    assert Counter(seed.form for seed in every).keys() == {"file", "folder", "pack", "ort", "words"}


def test_hostile_files_are_refused_or_finite_and_cost_little(every: list[Seed], bundle: Bundle, tmp_path: Path) -> None:
    for seed in every:  # what is kept from file to file is made now
        _read(seed, bundle, tmp_path)
    trial(every[0], "another module", 0, bundle, tmp_path)
    results: Counter[str] = Counter()
    faults = []
    for mutation, seed, number in hostile(every, FILES):
        read = trial(seed, mutation, number, bundle, tmp_path)
        results[read.result] += 1
        if read.fault:
            faults.append(f"{mutation} #{number} of {seed.name} ({seed.form}): {read.fault}")
    assert not faults
    assert results[LOADED] > FILES / 5 and len(results) > 6, "the files are hostile, and not merely broken"


@pytest.mark.parametrize("name", [ORDINARY, *(name for name in LARGE if name.startswith((f"{ORDINARY}:", "header")))])
def test_large_files_cost_at_most_twice_their_size(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """What they cost beyond it is a part of their largest layer, and a kB for each name."""
    seed = LARGE[name]()
    read = _read(seed, bundle, tmp_path)
    assert not read.fault
    if "emoji" not in name:
        assert read.peak < 2 * len(seed.blob) + 1024 * _names(seed) + (1 << 20)


def _names(seed: Seed) -> int:
    return min(seed.blob.count(b"data_offsets") + seed.blob.count(b'": "'), MAX_TENSORS)


def test_listing_and_inspecting_tell_of_every_file(every: list[Seed], bundle: Bundle, tmp_path: Path) -> None:
    """A card is made of any file, and an inspection of all that are adapters."""
    seen: Counter[str] = Counter()
    for mutation, seed, number in hostile(every, 300, first=100_000):
        path = write(seed, *mutate(mutation, Random(number), seed), tmp_path)
        told = card(Entry(path.stem, path), bundle)
        seen["refused" if told["refused"] else "fits" if told["fits"] else "misfits"] += 1
        with suppress(LoraEdgeError):
            json.dumps(inspection(path, bundle))
    assert min(seen.values()) > 10 and len(seen) == 3


def test_the_sample_has_every_mutation_of_every_form(every: list[Seed]) -> None:
    met = {(mutation, seed.form) for mutation, seed, _ in hostile(every, FILES)}
    assert {mutation for mutation, _ in met} == set(NAMES)
    assert {form for mutation, form in met if mutation == "truncated"} >= {"file", "folder", "pack", "ort"}
