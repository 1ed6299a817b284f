"""Noise equals torch's CPU generator, draw for draw."""

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from lora_edge.errors import RequestError
from lora_edge.runtime.noise import Noise

SEEDS = (0, 1, 7, 2**31, 2**32 - 1, 2**32 + 5, 2**63, 2**64 - 1, -1, -12345, -(2**63))

# Each row is drawn in turn from one generator: below 16 in pairs with one left over, 16 and more in blocks with a
# ragged end, and both in alternation.
DRAWS = (
    [(1, 4, 8, 8)],
    [(3,), (5,), (1,), (2, 3), (15,), (15,)],
    [(16,), (17,), (31,), (100,), (1, 4, 64, 64)],
    [(3,), (16,), (5,), (17,), (1,), (2, 3), (0,), (31,), (7,), (2, 4, 33, 5)],
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shapes", DRAWS)
def test_draws_equal_torch(seed, shapes):
    theirs, ours = generator(seed), Noise(seed)
    for shape in shapes:
        expected, drawn = torch.randn(shape, generator=theirs).numpy(), ours.normal(shape)
        assert drawn.shape == expected.shape and drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


def test_a_million_draws():
    expected = torch.randn(1_000_003, generator=generator(3)).numpy()
    np.testing.assert_allclose(Noise(3).normal([1_000_003]), expected, rtol=0, atol=1e-6)


def test_one_seed_per_row():
    seeds = [7, 8, 9]
    theirs, ours = [generator(seed) for seed in seeds], Noise(seeds)
    for shape in [(3, 4, 8, 8), (3, 5), (3, 4, 8, 8)]:
        np.testing.assert_allclose(ours.normal(shape), randn_tensor(shape, generator=theirs).numpy(), rtol=0, atol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours():
    np.testing.assert_array_equal(Noise([7, 8]).normal([2, 4, 8, 8])[1:], Noise(8).normal([1, 4, 8, 8]))


@pytest.mark.parametrize(("seed", "says"), [(2**64, "out of range"), (-(2**63) - 1, "out of range"), ([], "no seed")])
def test_seeds_refused(seed, says):
    with pytest.raises(RequestError, match=says):
        Noise(seed)


def test_rows_must_match_seeds():
    with pytest.raises(RequestError, match="2 seeds cannot fill"):
        Noise([1, 2]).normal([3, 4])
