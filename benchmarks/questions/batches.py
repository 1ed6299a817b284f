"""Question: how many images a second come out of batches in which every image has an adapter of its own?

Method: batches of 1, 2, 4 and 8 images at the smallest latents, two rows each for guidance: without adapter,
one adapter of rank 16 for all, and another one for each image. Ratios are to the batch without adapter, in
the same rounds. An image a second is counted as 20 such steps; encoding and decoding are not in it.
Machine: stands in every line.
Result: benchmarks/results/*/batches.*.jsonl, docs/plots/batches.png.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.adapter_files import Spec
from benchmarks.bench import Bench, Chosen
from benchmarks.contestants import named
from benchmarks.models import Model
from benchmarks.questions.step_time import NONE
from benchmarks.steps import Case, compare

RANK = 16
SIZES = (1, 2, 4, 8)
STEPS = 20


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    for name in bench.chosen(named("ours"), model):
        cases, reference = [], {}
        for images in SIZES:
            base = Case(name, f"{images}: {NONE}", (), images)
            shared = Case(name, f"{images}: one for all", ((Spec(RANK), 1.0),), images)
            own = Case(name, f"{images}: one for each", one_for_each(images), images)
            cases += [base, shared, own]
            reference |= {shared: base, own: base}
        for line in compare(bench, "batches", model, model.latents[0], cases, reference, 2):
            if "median" in line:
                line["images_per_second"] = round(line["images"] / (STEPS * line["median"]), 4)
            yield line


def one_for_each(images: int) -> Chosen:
    """An adapter for each image, its multiplier 1 in that image's two rows and 0 in all others."""
    return tuple(
        (Spec(RANK, seed=image), tuple(float(row % images == image) for row in range(2 * images)))
        for image in range(images)
    )
