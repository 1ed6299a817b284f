"""Every kind in every naming and dtype: the graph against torch with weights merged by the formula in float64.

W' = W + multiplier * (W'_1 - W), with W'_1 from the numbers that the file holds after rounding.
"""

import numpy as np
import pytest

from . import low_rank, multiplicative
from .bench import DTYPES, Bench
from .example import Example
from .naming import NAMINGS, Naming

EXAMPLES = {example.name: example for example in (*low_rank.EXAMPLES, *multiplicative.EXAMPLES)}
MULTIPLIERS = (0.7, 1.0, -0.5)
BOUND = 1e-3  # of the change that the adapter makes

CASES = [
    pytest.param(example, naming, dtype, id=f"{example.name}-{name}-{dtype}")
    for example in EXAMPLES.values()
    for name, naming in NAMINGS.items()
    if example.name == "lora" or not naming.only_lora
    for dtype in DTYPES
]


@pytest.mark.parametrize(("example", "naming", "dtype"), CASES)
def test_the_graph_computes_the_merged_weights(bench: Bench, example: Example, naming: Naming, dtype: str) -> None:
    adapter = bench.load(example, naming, dtype)
    for component in bench.layers(example, naming):
        unchanged = bench.run(component, [(adapter, 0.0)])
        assert all(np.array_equal(unchanged[name], array) for name, array in bench.base[component].items())
        for multiplier in MULTIPLIERS:
            wanted = bench.reference(component, example, naming, dtype, multiplier)
            assert bench.ratio(component, [(adapter, multiplier)], wanted) <= BOUND
