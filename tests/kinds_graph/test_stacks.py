"""Several adapters of different kinds at once: each is taken against the base, and the changes are summed.

W' = W + sum of multiplier * (W_i - W), every adapter on the same layers.
"""

import numpy as np
import pytest

from .bench import Bench, Changes
from .catalogue import EXAMPLES
from .naming import NAMINGS, SLOTS

BOUND = 1e-3  # of the change that the adapters make
NAMES = tuple(name for name, naming in NAMINGS.items() if not naming.only)
DTYPES = ("fp32", "fp16", "bf16")

STACKS: dict[str, dict[str, float]] = {
    "one of each sort": {"lora": 0.8, "dora: lora, out": -0.5, "ia3: output": 0.6, "oft": 0.4, "loha": 0.3},
    "gains on both axes": {"ia3: input": 0.7, "dora: lora, out": 0.5},
    "gains on both axes, several": {
        "ia3: input": -0.5,
        "ia3: output": 0.8,
        "dora: loha, in": 0.6,
        "dora: lokr, out": 1.0,
    },
    "two of one kind": {"dora: lora, out": 0.7, "dora: peft": 0.7},
    "biases and norms": {"full": 0.5, "full: bias alone": -0.7, "norm": 1.0, "norm: weight alone": 0.4, "lora": 1.0},
    "whole ranks": {"oft: rescale": 0.5, "boft": 0.5, "lokr: whole": -0.5, "full": 0.2, "glora": 0.3},
    "everything": {name: (-1) ** index * 0.15 for index, name in enumerate(EXAMPLES)},
}


@pytest.mark.parametrize("stack", STACKS)
def test_changes_add_up(bench: Bench, stack: str) -> None:
    adapters, changes = [], []
    for index, (name, multiplier) in enumerate(STACKS[stack].items()):
        naming, dtype = NAMINGS[NAMES[index % len(NAMES)]], DTYPES[index % len(DTYPES)]
        adapters.append((bench.load(EXAMPLES[name], naming, dtype), multiplier))
        changes.append((bench.changes(EXAMPLES[name], naming, dtype), multiplier))
    for component, base in bench.base.items():
        unchanged = bench.run(component, [(adapter, 0.0) for adapter, _ in adapters])
        assert all(np.array_equal(unchanged[name], array) for name, array in base.items())
        assert bench.ratio(component, adapters, bench.merged(component, changes)) <= BOUND


def test_an_adapter_at_multiplier_0_leaves_the_others_alone(bench: Bench) -> None:
    kohya = NAMINGS["kohya"]
    lora, dora, ia3 = (bench.load(EXAMPLES[name], kohya, "fp32") for name in ("lora", "dora: lora, out", "ia3: input"))
    changes = [(bench.changes(EXAMPLES["lora"], kohya, "fp32"), 0.7)]
    for component in bench.base:
        wanted = bench.merged(component, changes)
        assert bench.ratio(component, [(dora, 0.0), (lora, 0.7), (ia3, 0.0)], wanted) <= BOUND


def test_the_same_adapter_twice_is_the_sum_of_its_multipliers(bench: Bench) -> None:
    for name in ("lora", "dora: lora, in", "ia3: output", "oft"):
        adapter = bench.load(EXAMPLES[name], NAMINGS["kohya"], "fp16")
        changes: Changes = bench.changes(EXAMPLES[name], NAMINGS["kohya"], "fp16")
        for component in bench.base:
            wanted = bench.merged(component, [(changes, 0.8)])
            assert bench.ratio(component, [(adapter, 0.5), (adapter, 0.3)], wanted) <= BOUND


def test_one_file_may_hold_a_kind_per_layer(bench: Bench) -> None:
    """Trainers choose kinds by layer, and converters name the layers of one file in several ways."""
    examples = [example for example in EXAMPLES.values() if not example.norms]
    parts = []
    for component, paths in SLOTS.items():
        for index, path in enumerate(paths):
            name = NAMES[index % len(NAMES)]
            naming = NAMINGS["kohya" if NAMINGS[name].module(component, path) is None else name]
            parts.append((examples[(5 * index) % len(examples)], naming, {component: (path,)}))
    adapter = bench.load_parts(parts, "fp16")
    changes: list[tuple[Changes, float]] = [
        (bench.changes(example, naming, "fp16", layers), 0.7) for example, naming, layers in parts
    ]
    for component in bench.base:
        assert bench.ratio(component, [(adapter, 0.7)], bench.merged(component, changes)) <= BOUND
