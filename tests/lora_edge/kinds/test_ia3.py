"""IA3: LyCORIS' formula and module, PEFT's merged layers."""

from typing import Any

import numpy as np
import pytest
import torch
from lycoris.modules.ia3 import IA3Module
from peft import IA3Config, get_peft_model

from lora_edge.errors import AdapterMismatch, BaseNeeded


@pytest.mark.parametrize("layer", [(6, 10), (10, 6), (6, 6), (6, 4, 3, 3)])
@pytest.mark.parametrize("on_input", [True, False])
def test_against_lycoris(layer: Any, on_input: bool, random: Any, check: Any, deltas: Any) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(layer[1], layer[0]) if len(layer) == 2 else torch.nn.Conv2d(layer[1], layer[0], 3)
    weight = base.weight.detach().numpy().copy()
    module = IA3Module("x", base, train_on_input=on_input)
    module.weight.data = torch.randn_like(module.weight)
    tensors = {"weight": module.weight.detach().numpy(), "on_input": module.on_input.numpy()}
    wanted = module.get_merged_weight()[0].detach().numpy().astype(np.float64)
    forms = check(tensors, weight, wanted)
    assert [form.axis for form in forms] == ["in" if on_input else "out"]  # and the bias is left alone
    check(tensors | {"on_input": np.array([float(on_input)], np.float32)}, weight, wanted)


@pytest.mark.parametrize("sides", [(10, 6), (6, 10), (8, 8)])
@pytest.mark.parametrize("feedforward", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_against_peft(sides: tuple[int, int], feedforward: bool, bias: bool, check: Any, deltas: Any) -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(*sides, bias=bias), torch.nn.Conv2d(*sides, 3, bias=bias))
    before = [{name: value.detach().numpy().copy() for name, value in base[at].named_parameters()} for at in (0, 1)]
    targets = ["0", "1"]
    get_peft_model(base, IA3Config(target_modules=targets, feedforward_modules=targets if feedforward else []))
    for at, own in enumerate(before):
        layer = base[at]
        vector = layer.ia3_l["default"]
        vector.data = torch.rand_like(vector) + 0.5
        layer.merge()
        merged = layer.get_base_layer()
        forms = check(
            {"ia3_l": vector.detach().numpy()},
            own["weight"],
            merged.weight.detach().numpy().astype(np.float64),
            bias=own.get("bias"),
            feedforward=feedforward,
        )
        changed = deltas(forms) if bias else 0
        wanted = merged.bias.detach().numpy() - own["bias"] if bias else 0
        np.testing.assert_allclose(changed, wanted, atol=1e-6)
        assert forms[0].axis == ("in" if feedforward else "out")


def test_a_square_conv_is_scaled_on_the_output_where_nothing_tells(random: Any, form: Any) -> None:
    (gain,) = form((4, 4, 3, 3), {"ia3_l": random(1, 4, 1, 1)}, has_bias=False)
    assert gain.axis == "out"


def test_a_bias_without_a_base(random: Any, form: Any) -> None:
    with pytest.raises(BaseNeeded, match="needs the biases of the base"):
        form((6, 10), {"ia3_l": random(6, 1)})
    assert form((6, 10), {"ia3_l": random(1, 10)})[0].axis == "in"


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((6, 10), {"weight": (5,), "on_input": ()}, "where the layer has 6 channels"),
        ((6, 10), {"on_input": ()}, "has on_input but no weight"),
        ((6,), {"weight": (6,), "on_input": ()}, "is a norm"),
        ((6, 10), {"ia3_l": (10, 1)}, r"has ia3_l \[10, 1\] where the layer has shape \[6, 10\]"),
        ((6, 10), {"ia3_l": (6,)}, r"has ia3_l \[6\]"),
        ((6, 6, 3, 3), {"ia3_l": (1, 5, 1, 1)}, r"has ia3_l \[1, 5, 1, 1\]"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)


def test_channels_of_the_other_side(random: Any, form: Any) -> None:
    with pytest.raises(AdapterMismatch, match="where the layer has 10 channels"):
        form((6, 10), {"weight": random(6), "on_input": np.array(1)})
