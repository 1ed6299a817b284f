"""The Mac checklist off a Mac: it says so, and its comparisons find what a wrong machine would do."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lora_edge.errors import GraphFailed
from lora_edge.runtime.coreml.manifest import Packaged, Packages, Pair, Port, Stage

EXAMPLES = Path(__file__).parents[2] / "examples"
RANK = 16
HALF = np.dtype(np.float16)
INPUTS = {
    "sample": Port("sample", (2, 6), HALF),
    "lora_scale": Port("lora_scale", (RANK,), HALF, True),
    "to_q_down": Port("to_q_down", (6, RANK), HALF, True),
    "to_q_up": Port("to_q_up", (RANK, 5), HALF, True),
}
PAIR = Pair("to_q_down", "to_q_up", (6, RANK), (RANK, 5))
STAGE = Stage(Path("Unet.mlpackage"), INPUTS, {"noise_pred": Port("noise_pred", (2, 5), np.dtype(np.float32))})
PACKAGES = Packages(RANK, "fp16", (8, 8), {"unet": Packaged((STAGE,), {"to_q": PAIR}, "lora_scale")})


@pytest.fixture(scope="module")
def parts() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    import mac_parts

    sys.path.pop(0)
    yield mac_parts


class Layer:
    """One slotted layer, as a package computes it, or `wrong` in one way."""

    weight = np.random.default_rng(3).standard_normal((6, 5))

    def __init__(self, path: Path, wrong: str = "") -> None:
        self.wrong = wrong

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if self.wrong == "no defaults" and feeds.keys() != INPUTS.keys():
            raise GraphFailed("to_q_down must be given")
        zeros = {name: np.zeros(port.shape) for name, port in INPUTS.items()}
        x, scale, down, up = ((zeros | dict(feeds))[name].astype(np.float64) for name in INPUTS)
        effect = ((x @ down) * scale) @ up
        known = {"": effect, "deaf": 0 * effect, "one lane": (x @ down[:, :1]) * scale[:1] @ up[:1], "nan": np.nan}
        return {"noise_pred": x @ self.weight + known.get(self.wrong, effect)}


def verdicts(parts: ModuleType, wrong: str) -> dict[str, bool]:
    lines = list(parts.check(PACKAGES, "unet", "CPU_ONLY", Layer, lambda path: Layer(path, wrong)))
    assert [line["component"] for line in lines] == ["unet"] * len(lines)
    return {line["case"]: line["ok"] for line in lines}


ADAPTERS = ("one adapter", "another multiplier", "two adapters")


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [
        ("", ()),
        ("deaf", ADAPTERS),
        ("one lane", ADAPTERS),
        ("no defaults", ("base",)),
        ("nan", ("base", "zeros", *ADAPTERS)),
    ],
)
def test_each_fault_fails_the_lines_that_it_touches(parts: ModuleType, wrong: str, failing: tuple[str, ...]) -> None:
    cases = verdicts(parts, wrong)
    assert list(cases) == ["load", "base", "zeros", *ADAPTERS]
    assert {case for case, ok in cases.items() if not ok} == set(failing)


def test_what_does_not_load_is_one_line(parts: ModuleType) -> None:
    def refuse(path: Path) -> Layer:
        raise GraphFailed("no")

    [line] = parts.check(PACKAGES, "unet", "CPU_ONLY", Layer, refuse)
    assert line["case"] == "load" and not line["ok"] and line["says"] == "no"


def test_times_are_of_steps_and_swaps(parts: ModuleType) -> None:
    assert set(parts.times(PACKAGES, "unet", Layer, rounds=1)) == {"step", "step_with_adapter", "step_with_swap"}


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_elsewhere_it_asks_for_a_mac_in_one_sentence() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "mac_check.py"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("mac-check needs a Mac") and len(done.stderr.splitlines()) == 1
