"""Full differences, biases, norms, dense and sparse remainders: what is added as it is."""

from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import NormDelta

LAYERS = [(6, 10), (10, 6), (6, 4, 3, 3), (4, 6, 1, 1)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_full_difference(layer: Any, random: Any, check: Any) -> None:
    weight, diff = random(*layer), random(*layer)
    (form,) = check({"diff": diff, "alpha": np.float32(9)}, weight, weight + diff.astype(np.float64))
    assert form.rank == min(layer[0], np.prod(layer[1:]))
    (form,) = check({"diff": diff, "scale": np.float32(0.5)}, weight, weight + 0.5 * diff.astype(np.float64))
    check({"diff": diff.reshape(layer[0], -1)}, weight, weight + diff.astype(np.float64))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bias_beside_any_kind(layer: Any, random: Any, check: Any, deltas: Any) -> None:
    weight, delta = random(*layer), random(layer[0])
    for tensors, change in (
        ({}, 0.0),
        ({"diff": np.ones(layer, np.float32)}, 1.0),
        ({"down": np.ones((1, *layer[1:]), np.float32), "up": np.ones((layer[0], 1), np.float32)}, 1.0),
    ):
        forms = check(tensors | {"diff_b": delta}, weight, weight.astype(np.float64) + change)
        np.testing.assert_array_equal(deltas(forms), delta)


def test_the_bias_of_an_up_is_scaled(random: Any, check: Any, deltas: Any) -> None:
    down, up, bias, weight = random(2, 10), random(6, 2), random(6), random(6, 10)
    tensors = {"down": down, "up": up, "up_bias": bias, "alpha": np.float32(3)}
    forms = check(tensors, weight, weight + 1.5 * up.astype(np.float64) @ down)
    np.testing.assert_allclose(deltas(forms), 1.5 * bias, rtol=1e-6)


def test_norms(random: Any, form: Any) -> None:
    weight, bias = random(8), random(8)
    for tensors, wanted in (
        ({"w_norm": weight, "b_norm": bias}, (weight, bias)),
        ({"w_norm": weight}, (weight, None)),
        ({"b_norm": bias}, (None, bias)),
        ({"diff": weight}, (weight, None)),
        ({"diff": weight, "diff_b": bias}, (weight, bias)),
        ({"diff_b": bias}, (None, bias)),
    ):
        made = form((8,), tensors)
        assert isinstance(made, NormDelta)
        for ours, theirs in zip((made.weight, made.bias), wanted, strict=True):
            assert (ours is None) == (theirs is None)
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layer", LAYERS)
def test_dense_and_sparse_remainders(layer: Any, random: Any, check: Any) -> None:
    """AUTOMATIC1111 adds `bias` before the scale; the sparse one is torch's COO format."""
    weight, down, up, bias = random(*layer), random(2, *layer[1:]), random(layer[0], 2), random(*layer)
    factors = {"down": down, "up": up, "alpha": np.float32(3)}
    product = (up.astype(np.float64) @ down.reshape(2, -1)).reshape(layer)
    check(factors | {"bias": bias}, weight, weight + 1.5 * (product + bias))
    sparse = torch.from_numpy(bias * (bias > 0.5)).to_sparse().coalesce()
    parts = {
        "bias_indices": sparse.indices().numpy(),
        "bias_values": sparse.values().numpy(),
        "bias_size": np.array(sparse.shape),
    }
    check(factors | parts, weight, weight + 1.5 * (product + bias * (bias > 0.5)))
    check(factors | parts | {"bias": bias}, weight, weight + 1.5 * (product + bias * (bias > 0.5) + bias))


def test_sparse_indices_outside(random: Any, form: Any) -> None:
    tensors = {"down": random(2, 10), "up": random(6, 2), "bias_values": random(1), "bias_size": np.array([6, 10])}
    for indices in ([[6], [0]], [[0], [-1]]):
        with pytest.raises(AdapterMismatch, match="has bias_indices outside of its bias_size"):
            form((6, 10), tensors | {"bias_indices": np.array(indices)})
    with pytest.raises(AdapterMismatch, match=r"has bias_size \[6, 9\]"):
        form((6, 10), tensors | {"bias_indices": np.array([[0], [0]]), "bias_size": np.array([6, 9])})


LORA = {"down": (2, 10), "up": (6, 2)}


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((6, 10), {"diff": (6, 9)}, r"has diff \[6, 9\]"),
        ((6, 10), {"diff": ()}, r"has diff \[\]"),
        ((6, 10), {"diff_b": (5,)}, r"has diff_b \[5\] where the layer has 6 channels"),
        ((6, 10), {"diff": (6, 10), "diff_b": (6, 10)}, "where the layer has 6 channels"),
        ((6,), {"diff": (6, 10)}, "where the layer has 6 channels"),
        ((6,), {"w_norm": (5,)}, "where the layer has 6 channels"),
        ((6, 10), {"w_norm": (6,)}, "which change norms, and the layer is none"),
        ((6, 10), LORA | {"bias": (6,)}, "a whole bias of the layer, which lora-edge does not read"),
        ((6, 10), LORA | {"bias": (6, 9)}, r"has bias \[6, 9\]"),
        ((6, 10), LORA | {"bias_indices": (2, 3), "bias_values": (3,)}, "but no bias_size"),
        ((6, 10), LORA | {"bias_indices": (2, 3), "bias_values": (4,), "bias_size": (2,)}, "that do not follow"),
        ((6, 10), LORA | {"bias_indices": (2, 61), "bias_values": (61,), "bias_size": (2,)}, "has 61 bias_values"),
        ((6, 10), LORA | {"up_bias": (5,)}, "where the layer has 6 channels"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)


def test_what_stands_beside_no_factors(random: Any, form: Any) -> None:
    with pytest.raises(AdapterMismatch, match="a dense bias beside no low-rank update"):
        form((6, 10), {"weight": random(6), "on_input": np.array(0), "bias": random(6, 10)})
    with pytest.raises(AdapterMismatch, match="the bias of an `up` and no `up`"):
        form((6, 10), {"weight": random(6), "on_input": np.array(0), "up_bias": random(6)})
