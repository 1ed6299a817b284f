"""Truncation is the best there is: against torch.linalg.svd in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.errors import AdapterValueError, RequestError
from lora_edge.tools.svd import Budget, energy_of, truncate_lanes, truncate_whole
from lora_edge.tools.write import encode, same_in, stored_dtype

SHAPES = [(40, 24), (24, 40), (30, 30), (5, 64)]


def best(change: Any, rank: int) -> tuple[Any, float, float]:
    """torch's own truncation [out, patch], its energy, and all energy."""
    left, values, right = torch.linalg.svd(torch.from_numpy(np.asarray(change, np.float64)), full_matrices=False)
    made = (left[:, :rank] * values[:rank]) @ right[:rank]
    return made.numpy(), float((values[:rank] ** 2).sum()), float((values**2).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_a_whole_change(shape: tuple[int, int], rank: int) -> None:
    change = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted, kept, total = best(change, rank)
    found = truncate_whole(change, (), Budget(rank))
    assert found.rank == min(rank, *shape)
    assert found.down.dtype == found.up.dtype == np.float32
    assert found.kept == pytest.approx(kept, rel=1e-9) and found.total == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose((found.down @ found.up).T, wanted, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lanes", [4, 50])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_lanes(shape: tuple[int, int], lanes: int, rank: int) -> None:
    rng = np.random.default_rng(1)
    down, up = rng.standard_normal((shape[1], lanes)), rng.standard_normal((lanes, shape[0]))
    wanted, kept, total = best((down @ up).T, rank)
    found = truncate_lanes(down, up, (), Budget(rank))
    assert found.rank == min(rank, lanes, *shape)
    assert found.kept == pytest.approx(kept, rel=1e-9) and found.total == pytest.approx(total, rel=1e-9)
    assert energy_of(down, up) == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose((found.down @ found.up).T, wanted, atol=1e-5)


def test_small_and_rank_deficient_changes() -> None:
    rng = np.random.default_rng(2)
    thin = 1e-6 * rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))
    for change in (thin, np.zeros((6, 4)), thin.astype(np.float32)):
        found = truncate_whole(change, (), Budget(3))
        assert np.isfinite(found.down).all() and np.isfinite(found.up).all()
        np.testing.assert_allclose((found.down @ found.up).T, change, atol=1e-12)
    zeros = truncate_lanes(np.zeros((5, 2)), np.zeros((2, 4)), (), Budget(1))
    assert not (zeros.down @ zeros.up).any() and zeros.kept == zeros.total == 0


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999, 1.0])
def test_the_fewest_lanes_that_keep_an_energy(share: float) -> None:
    rng = np.random.default_rng(3)
    down, up = rng.standard_normal((40, 12)) * np.arange(1, 13), rng.standard_normal((12, 30))
    for found in (
        truncate_lanes(down, up, (), Budget(energy=share)),
        truncate_whole((down @ up).T, (), Budget(energy=share)),
    ):
        assert found.kept >= share * found.total * (1 - 1e-9)
        assert found.rank == 1 or best((down @ up).T, found.rank - 1)[1] < share * found.total
    assert truncate_lanes(down, up, (), Budget(2, energy=share)).rank <= 2


def test_convolutions_have_a_rank_of_their_own() -> None:
    change = np.random.default_rng(4).standard_normal((20, 90))
    budget = Budget(6, conv_rank=2)
    assert [truncate_whole(change, kernel, budget).rank for kernel in ((), (1, 1), (3, 3))] == [6, 6, 2]
    assert truncate_whole(change, (3, 3), Budget(6)).rank == 6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "say how much to keep"),
        ({"conv_rank": 2}, "say how much to keep"),
        ({"rank": 0}, "a rank of 0"),
        ({"rank": 4, "conv_rank": -1}, "a conv rank of -1"),
        ({"energy": 0.0}, "an energy of 0.0"),
        ({"energy": 1.5}, "an energy of 1.5"),
        ({"energy": float("nan")}, "an energy of nan"),
    ],
)
def test_budgets_that_mean_nothing(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        Budget(**settings)


@pytest.mark.parametrize(("dtype", "wide"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_rounding_is_that_of_torch(dtype: str, wide: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    array = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-9, 4, 10_000)).astype(np.float32)
    wanted = torch.from_numpy(array).to(wide).view(torch.int16 if wide.itemsize == 2 else torch.int32).numpy()
    made = encode(array, dtype, "x")
    assert np.array_equal(made.view(wanted.dtype), wanted)
    assert same_in(dtype, array, torch.from_numpy(array).to(wide).float().numpy())
    assert not same_in(dtype, array, array * np.float32(1.01))


def test_what_does_not_fit_a_dtype_is_refused() -> None:
    for dtype, number in (("F16", 1e5), ("BF16", 3.4e38), ("F32", 1e39), ("F32", np.nan), ("BF16", np.inf)):
        with pytest.raises(AdapterValueError, match=f"here has numbers that do not fit {dtype}"):
            encode(np.array([number]), dtype, "here")
    with pytest.raises(RequestError, match="no dtype 'fp8'"):
        stored_dtype("fp8")
