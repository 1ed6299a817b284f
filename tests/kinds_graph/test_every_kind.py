"""Every kind in every naming and dtype: the graph against torch with weights merged by the formula in float64.

W' = W + multiplier * (W'_1 - W), with W'_1 from the numbers that the file holds after rounding.
"""

import numpy as np
import pytest

from lora_edge.kinds import KINDS, MODIFIERS

from .bench import DTYPES, Bench
from .catalogue import EXAMPLES
from .example import Example
from .naming import NAMINGS, Naming
from .twin import Outputs

MULTIPLIERS = (0.7, 1.0, -0.5)
BOUND = 1e-3  # of the change that the adapter makes

CASES = [
    pytest.param(example, naming, dtype, id=f"{example.name}-{name}-{dtype}")
    for example in EXAMPLES.values()
    for name, naming in NAMINGS.items()
    if naming.fits(example.name)
    for dtype in DTYPES
]


def moves(outputs: Outputs, base: Outputs) -> bool:
    """Whether there is a change to measure errors by."""
    return max(np.abs(outputs[name] - base[name]).max() / np.abs(base[name]).max() for name in base) > 0.01


@pytest.mark.parametrize(("example", "naming", "dtype"), CASES)
def test_the_graph_computes_the_merged_weights(bench: Bench, example: Example, naming: Naming, dtype: str) -> None:
    adapter = bench.load(example, naming, dtype)
    for component in bench.layers(example, naming):
        unchanged = bench.run(component, [(adapter, 0.0)])
        assert all(np.array_equal(unchanged[name], array) for name, array in bench.base[component].items())
        for multiplier in MULTIPLIERS:
            wanted = bench.reference(component, example, naming, dtype, multiplier)
            assert moves(wanted, bench.base[component])
            assert bench.ratio(component, [(adapter, multiplier)], wanted) <= BOUND


def test_every_kind_and_modifier_has_an_example(bench: Bench) -> None:
    adapters = [bench.load(example, NAMINGS["kohya"], "fp32") for example in EXAMPLES.values()]
    shown = {name for adapter in adapters for kind in adapter.kinds for name in kind.split("+")}
    assert shown == {owner.name for owner in (*KINDS, *MODIFIERS)}


def test_an_alpha_of_0_stops_the_oft_of_kohya(bench: Bench) -> None:
    """LyCORIS takes 0 for no constraint; kohya (networks/oft.py) holds Q to a norm of 0 and has a prefix of its own."""
    adapter = bench.load(EXAMPLES["oft"], NAMINGS["kohya-oft"], "fp32")
    unet = bench.run("unet", [(adapter, 1.0)])
    assert np.allclose(unet["out_sample"], bench.base["unet"]["out_sample"], atol=1e-6)
    wanted = bench.reference("text_encoder", EXAMPLES["oft"], NAMINGS["kohya-oft"], "fp32", 1.0)
    assert bench.ratio("text_encoder", [(adapter, 1.0)], wanted) <= BOUND
