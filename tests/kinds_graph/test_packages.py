"""The formulas of the examples against the packages that write such files, layer by layer at multiplier 1.

LyCORIS is asked for the output of the layer, not for its merged weight: `get_merged_weight` multiplies LoHa and LoKr by
alpha / rank twice (up to 4.1.3 at least).
"""

import numpy as np
import pytest
import torch
from lycoris.functional.general import weight_decompose
from lycoris.functional.lokr import kron_weight
from lycoris.modules import IA3Module, get_module, make_module
from torch import nn

from .catalogue import EXAMPLES
from .example import Array, Example

LAYERS = {
    "linear": lambda: nn.Linear(6, 16),
    "without bias": lambda: nn.Linear(16, 16, bias=False),
    "conv 1x1": lambda: nn.Conv2d(6, 16, 1),
    "conv 3x3": lambda: nn.Conv2d(8, 16, 3, padding=1, stride=2),
}
NORMS = {"layer norm": lambda: nn.LayerNorm(16), "group norm": lambda: nn.GroupNorm(4, 16)}
# What no installed package reads: older LyCORIS wrote it, or LyCORIS never reads back a half of it. Formula only.
FORMULA_ONLY = {
    "glora: old",
    "oft: diag",
    "lora: other axes",
    "lora: dense",
    "lora: sparse",
    "full: bias alone",
    "norm: weight alone",
    "dora: peft",
}
CASES = [
    pytest.param(example, layer, id=f"{example.name}-{layer}")
    for example in EXAMPLES.values()
    if example.name not in FORMULA_ONLY
    for layer in (NORMS if example.norms else LAYERS)
]
BOUND = 1e-4  # of the change, in float32


def made(name: str) -> nn.Module:
    """A layer, and all layers of one name the same."""
    torch.manual_seed(3)
    layer: nn.Module = {**LAYERS, **NORMS}[name]().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.2
    return layer


def put(layer: nn.Module, example: Example, tensors: dict[str, Array]) -> nn.Module:
    """The layer with the weight and bias of the formula."""
    bias = getattr(layer, "bias", None)
    own = np.zeros(len(layer.weight)) if bias is None else bias.numpy()  # type: ignore[arg-type]
    weight, bias = example.weight(layer.weight.double().numpy(), tensors), example.bias(own, tensors)  # type: ignore[operator]
    layer.weight = nn.Parameter(torch.from_numpy(weight).float(), False)
    layer.bias = nn.Parameter(torch.from_numpy(np.asarray(bias)).float(), False)
    return layer


def kron(weight: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """LoKr by LyCORIS's functions: its module factors a layer's size in ways of its own, whatever the file says."""
    leaves = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    factors = [state.get(f"x.{leaf}") for leaf in leaves]
    factored = next((f for f in (factors[5], factors[2]) if f is not None), None)
    scale = 1.0 if factored is None else float(state["x.alpha"]) / len(factored)
    moved = weight + kron_weight(*factors, scale=scale).reshape(weight.shape)
    magnitude = state.get("x.dora_scale")
    return moved if magnitude is None else weight_decompose(moved, magnitude, 1, magnitude.shape[0] > 1)


def through_lycoris(layer: nn.Module, tensors: dict[str, Array]) -> nn.Module:
    """The layer with LyCORIS's own module around it, made of the tensors as of a file."""
    state = {f"x.{leaf}": torch.from_numpy(np.array(value)) for leaf, value in tensors.items()}
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    if any(leaf.startswith("lokr") for leaf in tensors):
        layer.weight = nn.Parameter(kron(layer.weight, state), False)  # type: ignore[arg-type]
        return layer
    if "on_input" in tensors:  # IA3Module cannot make itself of its own file
        module = IA3Module("x", layer, train_on_input=bool(tensors["on_input"]))
        module.weight.data = state["x.weight"]
    else:
        kind, parameters = get_module(state, "x")
        scale = state.get("x.dora_scale")
        if scale is not None:  # make_module takes the output side for granted
            parameters = (*parameters[:-1], torch.ones(len(layer.weight), *(1,) * (scale.ndim - 1)))  # type: ignore[arg-type]
        module = make_module(kind, parameters, "x", layer)
        if scale is not None:
            module.dora_scale, module.wd_on_out = nn.Parameter(scale, False), scale.shape[0] > 1
    module.apply_to()
    layer.keeper = module
    return layer


def probe(layer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = {nn.Linear: (5, 0), nn.Conv2d: (2, 0, 6, 6), nn.LayerNorm: (5, 16), nn.GroupNorm: (2, 16, 3)}[type(layer)]
    width = getattr(layer, "in_features", getattr(layer, "in_channels", 0))
    return torch.randn([width or size if size == 0 else size for size in shape], generator=generator)


@pytest.mark.parametrize(("example", "name"), CASES)
def test_the_formula_is_what_lycoris_computes(example: Example, name: str) -> None:
    layer = made(name)
    tensors = example.make(layer.weight.double().numpy(), np.random.default_rng(6))  # type: ignore[operator]
    x = probe(layer)
    base, wanted = layer(x), put(made(name), example, tensors)(x)
    with torch.no_grad():
        given = through_lycoris(layer, tensors)(x)
    change = (wanted - base).abs().max()
    assert change > 0.01 * base.abs().max()
    assert (given - wanted).abs().max() <= BOUND * change
