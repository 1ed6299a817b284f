"""The mix of adapters against `reference`, and `reference` against torch."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lora_edge import reference
from lora_edge.errors import RequestError
from lora_edge.forms import Bias, ComponentForms, Gain, LowRank, NormDelta
from lora_edge.mix import Mix
from lora_edge.slots import Slot, SlotTable

LINEAR = Slot("a", 6, 5)
CONV = Slot("b", 3, 4, (3, 3))
TABLE = SlotTable("unet", (LINEAR, CONV), {"n": 4})
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def low_rank(slot: Slot, rank: int, scale: float = 1.0) -> LowRank:
    return LowRank(normal(slot.patch, rank), normal(rank, slot.out_features), scale)


def test_lanes_lie_side_by_side_and_multipliers_live_in_scales_alone() -> None:
    one = ComponentForms({"a": (low_rank(LINEAR, 2, 0.5),), "b": (low_rank(CONV, 1),)})
    two = ComponentForms({"b": (low_rank(CONV, 3, 2.0),)})
    mix = Mix(TABLE, [one, two])
    feeds = mix.feeds(np.array([[0.8, 0.4], [0.0, 1.0]], np.float32))
    assert feeds["lora.ranks"].tolist() == [2, 4]
    assert feeds["lora.scales"].tolist() == pytest.approx(
        np.array([[0.4, 0.4, 0.8, 0.8, 0.8, 0.8], [0, 0, 0, 2, 2, 2]])
    )
    assert feeds["lora.b.down"].shape == (27, 4) and feeds["lora.b.up"].shape == (4, 4)
    other = mix.feeds(np.array([[0.1, 0.1]], np.float32))
    moved = {name for name in feeds if feeds[name] is not other[name]}
    assert moved == {"lora.scales"}


def test_a_single_adapter_is_fed_as_it_lies() -> None:
    form = low_rank(LINEAR, 2)
    assert Mix(TABLE, [ComponentForms({"a": (form,)})]).feeds(np.ones((1, 1), np.float32))["lora.a.down"] is form.down


def test_gains_biases_and_norms_are_each_taken_against_the_base() -> None:
    """W' = W + sum m (W'_1 - W): two gains add their excess, they do not multiply."""
    parts = [
        ComponentForms({"a": (Gain("out", np.full(5, 1.5, np.float32)), Bias(np.ones(5, np.float32)))}),
        ComponentForms({"a": (Gain("out", np.full(5, 3.0, np.float32)),)}, {"n": NormDelta(np.ones(4, np.float32))}),
    ]
    norms = {"n.weight": np.full(4, 2.0, np.float32), "n.bias": np.zeros(4, np.float32)}
    feeds = Mix(TABLE, parts, norms).feeds(np.array([[0.5, 0.25]], np.float32))
    assert feeds["lora.a.gain_out"] == pytest.approx(1 + 0.5 * 0.5 + 0.25 * 2)
    assert feeds["lora.a.bias"] == pytest.approx(0.5)
    assert feeds["n.weight"] == pytest.approx(2.25)
    assert "n.bias" not in feeds
    once = Mix(TABLE, parts[:1], norms)
    one, same = once.moving(0.3), once.moving(np.array([[[0.3]]], np.float32))
    assert one.keys() == same.keys() and all(np.array_equal(one[name], same[name]) for name in one)
    assert all(array.dtype == np.float32 and array.shape == same[name].shape for name, array in one.items())
    with pytest.raises(RequestError, match="acts on the whole batch"):
        Mix(TABLE, parts, norms).feeds(np.array([[0.5, 0.25], [0.5, 0.5]], np.float32))


@pytest.mark.parametrize("slot", [LINEAR, CONV], ids=["linear", "conv"])
def test_the_definition_against_torch(slot: Slot) -> None:
    """x times the effective weight equals the layer plus the adapter branch, computed by torch in float64."""
    weight, form = torch.randn(slot.weight_shape, dtype=torch.float64), low_rank(slot, 3)
    inputs = {
        "down": form.down.astype(np.float64),
        "up": form.up.astype(np.float64),
        "gain_in": 1 + 0.1 * RANDOM.standard_normal(slot.in_features),
        "gain_out": 1 + 0.1 * RANDOM.standard_normal(slot.out_features),
    }
    scale = RANDOM.standard_normal(3)
    changed = torch.from_numpy(reference.effective_weight(slot, weight.numpy(), inputs, scale))
    down, up, lanes = (torch.from_numpy(array) for array in (inputs["down"].T, inputs["up"].T, scale))
    gain_in, gain_out = (torch.from_numpy(inputs[leaf]) for leaf in ("gain_in", "gain_out"))
    if slot.kernel is None:
        x = torch.randn(2, 7, slot.in_features, dtype=torch.float64)
        branch = functional.linear(functional.linear(x, down) * lanes, up)
        expected = functional.linear(x * gain_in, weight) * gain_out + branch
        got = functional.linear(x, changed)
        same = reference.linear(slot, x.numpy(), weight.numpy(), 0.0, inputs, scale[None])
        assert np.abs(same - expected.numpy()).max() < 1e-12
    else:
        x = torch.randn(2, slot.in_features, 8, 9, dtype=torch.float64)
        lane = functional.conv2d(x, down.reshape(3, *slot.weight_shape[1:]), padding=1) * lanes[:, None, None]
        branch = functional.conv2d(lane, up[:, :, None, None])
        base = functional.conv2d(x * gain_in[:, None, None], weight, padding=1) * gain_out[:, None, None]
        expected, got = base + branch, functional.conv2d(x, changed, padding=1)
    assert (got - expected).abs().max() < 1e-12


@pytest.mark.parametrize("slot", [LINEAR, CONV, Slot("a", 2, 9)], ids=["linear", "conv", "wide"])
def test_gains_of_both_axes_on_one_slot_add_up_too(slot: Slot) -> None:
    """The graph would multiply them: (1 + a)(1 + b) is not 1 + a + b."""
    table = SlotTable("unet", (slot,))
    weight = normal(*slot.weight_shape)
    over_in, over_out = normal(slot.in_features), normal(slot.out_features)
    parts = [ComponentForms({slot.name: (Gain("in", over_in),)}), ComponentForms({slot.name: (Gain("out", over_out),)})]
    mix = Mix(table, parts, weight=lambda name: weight)
    feeds = mix.feeds(np.array([[0.7, -0.5]], np.float32))
    inputs = {leaf: feeds[slot.port(leaf)] for leaf in ("down", "up", "gain_out")}
    spread = (1,) * (weight.ndim - 2)
    change = 0.7 * (over_in - 1).reshape(1, -1, *spread) - 0.5 * (over_out - 1).reshape(-1, 1, *spread)
    made = reference.effective_weight(slot, weight, inputs, feeds["lora.scales"][0])
    np.testing.assert_allclose(made, weight * (1 + change), atol=1e-5)
    assert feeds["lora.ranks"].tolist() == [min(slot.patch, slot.out_features)]
    with pytest.raises(RequestError, match="takes the base's weights"):
        Mix(table, parts)


def test_strengths_may_differ_by_place() -> None:
    """Places are the slots in order and then the norms: what block weights act on."""
    part = ComponentForms(
        {"a": (low_rank(LINEAR, 2), Bias(np.ones(5, np.float32))), "b": (low_rank(CONV, 1),)},
        {"n": NormDelta(None, np.ones(4, np.float32))},
    )
    norms = {"n.weight": np.ones(4, np.float32), "n.bias": np.zeros(4, np.float32)}
    feeds = Mix(TABLE, [part], norms).feeds(np.array([[[0.5, 2.0, 3.0]]], np.float32))
    assert feeds["lora.scales"].tolist() == [[0.5, 0.5, 2.0]]
    assert feeds["lora.a.bias"] == pytest.approx(0.5) and feeds["n.bias"] == pytest.approx(3)


def test_only_what_has_no_lanes_must_be_alike_in_all_rows() -> None:
    bias, lanes = ComponentForms({"a": (Bias(np.ones(5, np.float32)),)}), ComponentForms({"a": (low_rank(LINEAR, 1),)})
    feeds = Mix(TABLE, [bias, lanes]).feeds(np.array([[1.0, 0.0], [1.0, 2.0]], np.float32))
    assert feeds["lora.scales"].tolist() == [[0.0], [2.0]]
    assert bias.uniform and not lanes.uniform
