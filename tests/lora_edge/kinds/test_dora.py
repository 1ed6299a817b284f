"""DoRA around every kind of factors, against the trainers' formula and LyCORIS' and PEFT's own functions."""

from typing import Any

import numpy as np
import pytest
import torch
from lycoris.functional.general import weight_decompose
from peft import LoraConfig, get_peft_model

from lora_edge.errors import AdapterMismatch, AdapterValueError, BaseNeeded

LAYERS = [(6, 10), (10, 10), (6, 4, 3, 3), (4, 6, 1, 1)]


def lora(layer: Any, random: Any) -> tuple[dict[str, Any], Any]:
    tensors = {"down": random(2, *layer[1:]), "up": random(layer[0], 2), "alpha": np.float32(3)}
    return tensors, 1.5 * (tensors["up"].astype(np.float64) @ tensors["down"].reshape(2, -1)).reshape(layer)


def loha(layer: Any, random: Any) -> tuple[dict[str, Any], Any]:
    tensors = {f"hada_w{half}_a": random(layer[0], 1) for half in (1, 2)}
    tensors |= {f"hada_w{half}_b": random(1, int(np.prod(layer[1:]))) for half in (1, 2)}
    d = {leaf: array.astype(np.float64) for leaf, array in tensors.items()}
    return tensors, ((d["hada_w1_a"] @ d["hada_w1_b"]) * (d["hada_w2_a"] @ d["hada_w2_b"])).reshape(layer)


def lokr(layer: Any, random: Any) -> tuple[dict[str, Any], Any]:
    tensors = {"lokr_w1": random(2, 2), "lokr_w2": random(layer[0] // 2, layer[1] // 2, *layer[2:])}
    first = tensors["lokr_w1"].reshape(2, 2, *(1 for _ in layer[2:])).astype(np.float64)
    return tensors, np.kron(first, tensors["lokr_w2"])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("factors", [lora, loha, lokr])
@pytest.mark.parametrize("on_output", [True, False])
def test_both_axes_around_every_kind(layer: Any, factors: Any, on_output: bool, random: Any, check: Any) -> None:
    tensors, change = factors(layer, random)
    weight = random(*layer)
    shape = (layer[0], 1) if on_output else (1, layer[1])
    magnitudes = 1 + np.abs(random(*shape, *(1 for _ in layer[2:])))
    wanted = weight_decompose(
        torch.from_numpy(weight + change), torch.from_numpy(magnitudes).double(), wd_on_out=on_output
    )
    forms = check(tensors | {"dora_scale": magnitudes}, weight, wanted.numpy())
    assert forms[0].axis == ("out" if on_output else "in")


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if len(layer) == 4])
def test_magnitudes_of_peft_are_of_the_output(layer: Any, random: Any, check: Any) -> None:
    """[1, out, 1, 1], which looks like LyCORIS' input axis; the name tells."""
    tensors, change = lora(layer, random)
    weight, magnitudes = random(*layer), 1 + np.abs(random(1, layer[0], 1, 1))
    wanted = weight_decompose(
        torch.from_numpy(weight + change), torch.from_numpy(magnitudes).double().transpose(0, 1), wd_on_out=True
    )
    check(tensors | {"lora_magnitude_vector": magnitudes}, weight, wanted.numpy())


@pytest.mark.parametrize("on_output", [True, False])
def test_a_change_that_nearly_undoes_the_weight(on_output: bool, random: Any, check: Any) -> None:
    """Norms are summed from their parts; where the parts cancel there would be few digits left."""
    tensors, _ = lora((6, 10), random)
    tensors["alpha"] = np.float32(2)
    change = tensors["up"].astype(np.float64) @ tensors["down"]
    weight = (-change * (1 - 1e-3)).astype(np.float32)
    magnitudes = 1 + np.abs(random(*((6, 1) if on_output else (1, 10))))
    wanted = weight_decompose(
        torch.from_numpy(weight + change), torch.from_numpy(magnitudes).double(), wd_on_out=on_output
    )
    check(tensors | {"dora_scale": magnitudes}, weight, wanted.numpy())


def test_against_peft(random: Any, check: Any) -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.Conv2d(4, 6, 3))
    weights = [base[at].weight.detach().numpy().copy() for at in (0, 1)]
    config = LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0", "1"], init_lora_weights=False)
    model = get_peft_model(base, config)
    for at, weight in enumerate(weights):
        layer = base[at]
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.data *= torch.rand_like(magnitude) + 0.5
        tensors = {
            "down": layer.lora_A["default"].weight.detach().numpy().copy(),
            "up": layer.lora_B["default"].weight.detach().numpy().copy(),
            "alpha": np.float32(3),
            "lora_magnitude_vector": magnitude.detach().numpy().copy(),
        }
        layer.merge()
        check(tensors, weight, layer.get_base_layer().weight.detach().numpy().astype(np.float64))
    assert model is not None


def test_rows_that_are_zero_stay_zero(random: Any, form: Any) -> None:
    weight = random(6, 10)
    weight[2] = 0
    tensors = {"down": np.zeros((1, 10), np.float32), "up": random(6, 1), "dora_scale": np.ones((6, 1), np.float32)}
    gain, product = form((6, 10), tensors, base_weight=lambda: weight)
    assert gain.values[2] == 1 and np.isfinite(product.up).all()


@pytest.mark.parametrize("huge", ["down", "dora_scale"])
def test_magnitudes_beyond_float32(huge: str, random: Any, form: Any) -> None:
    tensors = lora((6, 10), random)[0] | {"dora_scale": np.ones((6, 1), np.float32)}
    tensors["down"] *= 0
    tensors[huge] = np.full_like(tensors[huge], 3e38)
    with pytest.raises(AdapterValueError, match="makes a DoRA gain that is not finite"):
        form((6, 10), tensors, base_weight=lambda: random(6, 10) * np.float32(1e-3))


def test_without_a_base(random: Any, form: Any) -> None:
    tensors, _ = lora((6, 10), random)
    with pytest.raises(BaseNeeded, match="dora, which needs the weights of the base: open it with a bundle, or export"):
        form((6, 10), tensors | {"dora_scale": random(6, 1)})


FACTORS = {"down": (2, 10), "up": (6, 2)}


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((6, 10), FACTORS | {"dora_scale": (5, 1)}, "where the layer has 6 channels"),
        ((6, 10), FACTORS | {"dora_scale": (1, 9)}, "where the layer has 10 channels"),
        ((6, 10), FACTORS | {"dora_scale": (10,)}, "where the layer has 6 channels"),
        ((6, 10), FACTORS | {"dora_scale": ()}, "where the layer has 6 channels"),
        ((6, 10), FACTORS | {"lora_magnitude_vector": (1, 10)}, "where the layer has 6 channels"),
        ((6, 10), FACTORS | {"dora_scale": (6, 1), "lora_magnitude_vector": (6,)}, "has both"),
        ((6, 10), {"weight": (6,), "on_input": (), "dora_scale": (6, 1)}, "magnitudes beside no low-rank update"),
        ((6,), {"w_norm": (6,), "dora_scale": (6,)}, "magnitudes beside no low-rank update"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)


def test_beside_gains(random: Any, form: Any) -> None:
    with pytest.raises(AdapterMismatch):
        form((6, 10), {"w_norm": random(6), "dora_scale": random(6)}, base_weight=lambda: random(6, 10))
