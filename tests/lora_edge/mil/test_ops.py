"""Every operation against torch and against what coremltools itself infers for constants, one program for all."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.mil import Package
from lora_edge.mil.evaluate import Precision
from lora_edge.mil.ops import OPS
from lora_edge.mil.ops.linear import einsum

from .build import inferred, program
from .cases import CASES, Array, Case, noise


def name_of(case: str) -> str:
    return "out_" + case.replace(" ", "_")


Results = Mapping[Precision, Mapping[str, Array]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case evaluated from saved packages, one for each system."""
    folder = tmp_path_factory.mktemp("ops")
    made: dict[Precision, dict[str, Array]] = {"f32": {}, "f64": {}}
    for system in {case.system for case in CASES.values()}:
        cases = {name: case for name, case in CASES.items() if case.system == system}
        feeds = {f"{name_of(name)}_{at}": array for name, case in cases.items() for at, array in enumerate(case.inputs)}
        order = {name: at for at, name in enumerate(feeds)}

        def outputs(name: str, case: Case, order: dict[str, int] = order) -> Callable[..., Any]:
            first = order[f"{name_of(name)}_0"]
            return lambda mb, *variables: case.build(mb, *variables[first : first + len(case.inputs)])

        built = {name_of(name): outputs(name, case) for name, case in cases.items()}
        package = Package.open(program(built, feeds, folder / f"{system}.mlpackage", system))
        for precision, known in made.items():
            found = package.run(feeds, precision)
            known |= {name: found[name_of(name)] for name in cases}
    return made


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_others_give(name: str, results: Results) -> None:
    case = CASES[name]
    wanted = [] if case.other is None else [case.other(*(torch.from_numpy(array) for array in case.inputs)).numpy()]
    own = inferred(case.build, *case.inputs, system=case.system) if name not in NOT_INFERRED else None
    wanted += [] if own is None else [own]
    assert wanted
    for array in wanted:
        assert results["f32"][name].shape == array.shape
        np.testing.assert_allclose(results["f32"][name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.other is not None])
def test_float64_is_more_than_float32(name: str, results: Results) -> None:
    """Constants of a program, as an epsilon, are float32 all the same."""
    case = CASES[name]
    inputs = [torch.from_numpy(array) for array in case.inputs]
    exact = case.other(*(array.double() if array.is_floating_point() else array for array in inputs)).numpy()
    if exact.dtype == np.float64:
        np.testing.assert_allclose(results["f64"][name], exact, rtol=1e-7, atol=3e-8)


# What coremltools infers in another way than it documents, or not for these operands.
NOT_INFERRED = {"cumsum backwards", "concat interleaved"}


def test_every_operation_has_a_case() -> None:
    assert set(OPS) <= {name.split(" ")[0] for name in CASES}


@pytest.mark.parametrize("equation", ["bchq,bkhc->bkhq", "bkhq,bchk->bchq", "ab,bc->ca", "hab,hcb->hac"])
def test_einsum_of_any_two_matrices(equation: str) -> None:
    sizes = {"a": 3, "b": 2, "c": 8, "h": 3, "q": 5, "k": 7}
    first, second = equation.split("->")[0].split(",")
    x, y = (noise(*(sizes[label] for label in term)) for term in (first, second))
    wanted = torch.einsum(equation, torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(einsum([x, y], equation, declared=(wanted.shape,)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", ["ab,bc->c", "aa,ab->ab", "ab,bc->acd", "ab,bc"])
def test_einsum_of_something_else_is_refused(equation: str) -> None:
    with pytest.raises(ValueError):
        einsum([noise(2, 2), noise(2, 2)], equation, declared=((2, 2),))
