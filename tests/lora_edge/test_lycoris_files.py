"""Files that LyCORIS wrote for small real models: every layer computes what LyCORIS' own modules compute.

What is compared is the modules' `forward`, which trained the file; LyCORIS' `merge_to` applies alpha / rank twice.
Full differences are not among them: those modules hold whole weights until they are applied.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from lycoris import LycorisNetwork, create_lycoris

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.forms import NormDelta
from lora_edge.reference import effective_weight
from lora_edge.slots import SlotTable

BOUND = 1e-4  # of the change, float32 on both sides

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "lora tucker": ("lora+", {"algo": "lora", "use_tucker": True}),
    "loha": ("loha", {}),
    "loha tucker": ("loha", {"use_tucker": True}),
    "lokr": ("lokr", {"factor": 2}),
    "lokr both": ("lokr", {"factor": 2, "decompose_both": True, "linear_dim": 1, "conv_dim": 1}),
    "lokr tucker": ("lokr", {"factor": 2, "use_tucker": True, "linear_dim": 1, "conv_dim": 1}),
    "lokr whole": ("lokr", {"factor": 2, "full_matrix": True, "linear_dim": 10000, "conv_dim": 10000}),
    "dora": ("lora+dora", {"algo": "lora", "dora_wd": True}),
    "dora over inputs": ("lora+dora", {"algo": "lora", "dora_wd": True, "wd_on_output": False}),
    "loha dora": ("loha+dora", {"algo": "loha", "dora_wd": True}),
    "lokr dora": ("lokr+dora", {"algo": "lokr", "dora_wd": True, "factor": 2}),
    "ia3": ("ia3", {}),
    "glora": ("glora", {}),
    "oft": ("oft", {"algo": "diag-oft"}),
    "coft": ("oft", {"algo": "diag-oft", "constraint": 1e-3, "rescaled": True}),
    "boft": ("boft", {"rescaled": True}),
}


@pytest.fixture
def unet(short_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    return short_unet


class Base:
    """The weights of a torch model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._state = {name: value.numpy().copy() for name, value in model.state_dict().items()}

    def weight(self, component: str, slot: str) -> Any:
        return self._state[f"{slot}.weight"]

    def bias(self, component: str, slot: str) -> Any:
        return self._state.get(f"{slot}.bias")


@pytest.fixture
def prefix() -> Any:
    before = LycorisNetwork.LORA_PREFIX
    LycorisNetwork.apply_preset({"lora_prefix": "lora_unet"})
    yield
    LycorisNetwork.apply_preset({"lora_prefix": before})


def trained(model: torch.nn.Module, path: Path, **settings: Any) -> LycorisNetwork:
    """A network with random numbers in it, saved."""
    settings = {"linear_dim": 2, "conv_dim": 2, "linear_alpha": 3, "conv_alpha": 3} | settings
    network = create_lycoris(model, 1.0, **settings)
    for module in network.loras:  # what apply_to does, without changing the model
        network.add_module(module.lora_name, module)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(parameter.abs() + noise.abs() if name.endswith(("dora_scale", "rescale")) else noise)
    network.save_weights(str(path), torch.float32, {})
    return network


def inputs(layer: Any) -> torch.Tensor:
    if isinstance(layer, torch.nn.Conv2d):
        return torch.randn(1, layer.in_channels, 6, 6)
    if isinstance(layer, torch.nn.GroupNorm):
        return torch.randn(1, layer.num_channels, 6, 6)
    return torch.randn(4, layer.weight.shape[-1])


def outputs(adapter: Adapter, path: str, layer: Any, table: SlotTable, base: Base, x: torch.Tensor) -> torch.Tensor:
    """What the layer computes with the adapter, in float64."""
    forms, weight, bias = adapter.components["unet"], base.weight("unet", path), base.bias("unet", path)
    if path in forms.norms:
        delta = forms.norms[path]
        assert isinstance(delta, NormDelta) and delta.weight is not None and delta.bias is not None
        w, b = (torch.from_numpy(part).double() for part in (weight + delta.weight, bias + delta.bias))
        if isinstance(layer, torch.nn.GroupNorm):
            return F.group_norm(x.double(), layer.num_groups, w, b, layer.eps)
        return F.layer_norm(x.double(), layer.normalized_shape, w, b, layer.eps)
    own, given, scale = forms.slots[path], {}, [np.zeros(0)]
    for form in own:
        given |= {
            "LowRank": lambda form: {"down": form.down.astype(np.float64), "up": form.up.astype(np.float64)},
            "Gain": lambda form: {f"gain_{form.axis}": form.values.astype(np.float64)},
            "Bias": lambda form: {"bias": form.delta.astype(np.float64)},
        }[type(form).__name__](form)
        scale += [np.full(form.rank, form.scale)] if hasattr(form, "rank") else []
    changed = effective_weight(table.by_name[path], weight.astype(np.float64), given, np.concatenate(scale))
    w = torch.from_numpy(changed)
    b = None if bias is None else torch.from_numpy(bias + given.get("bias", 0.0)).double()
    if isinstance(layer, torch.nn.Conv2d):
        return F.conv2d(x.double(), w, b, layer.stride, layer.padding)
    return F.linear(x.double(), w, b)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_layer_computes_what_lycoris_computes(
    name: str, prefix: None, unet: Any, table_of: Callable[..., SlotTable], tmp_path: Path
) -> None:
    unet_table = table_of(unet)
    kind, more = ALGORITHMS[name]
    base = Base(unet)
    network = trained(unet, tmp_path / "x.safetensors", **{"algo": kind, "train_norm": True} | more)
    file = read_adapter(tmp_path / "x.safetensors")
    adapter = file.fit([unet_table], base=base)
    assert set(adapter.kinds) >= {kind.removesuffix("+")} and not adapter.report.unused
    assert adapter.components["unet"].nbytes == file.cost([unet_table]).nbytes == adapter.nbytes
    paths = {path.replace(".", "_"): path for path, _ in unet.named_modules()}
    for module in network.loras:
        layer = module.org_module[0]
        path = paths[module.lora_name.removeprefix("lora_unet_")]
        x = inputs(layer)
        with torch.no_grad():
            before, theirs = layer(x), module(x)
        ours = outputs(adapter, path, layer, unet_table, base, x)
        largest = (theirs - before).abs().max()
        assert largest > 0
        assert (ours - theirs).abs().max() <= BOUND * largest + 2e-6 * before.abs().max(), path
