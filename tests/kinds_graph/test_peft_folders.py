"""Folders that PEFT saves, through the graph, against the weights that PEFT itself merges."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from .bench import DTYPES, Bench, Changes

ATTENTION = ["to_q", "to_k", "to_out.0", "q_proj", "v_proj", "out_proj"]
LAYERS = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "conv_out", "fc1", "fc2"]
MULTIPLIERS = (0.7, 1.0, -0.5)
BOUND = 1e-3  # of the change that the adapter makes

CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LAYERS),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=LAYERS,
        rank_pattern={"to_q": 2, "q_proj": 3, r"down_blocks\.\d.*\.conv1": 5},
        alpha_pattern={"to_q": 5, "fc1": 1, "mid_block.attentions.0.proj_in": 2},
    ),
    "dora": lambda: LoraConfig(r=3, lora_alpha=4, use_dora=True, target_modules=LAYERS),
    "dora, rslora": lambda: LoraConfig(r=4, lora_alpha=2, use_dora=True, use_rslora=True, target_modules=ATTENTION),
    "lora: bias": lambda: LoraConfig(r=3, lora_alpha=5, lora_bias=True, target_modules=["to_out.0", "proj_in", "fc1"]),
    "loha": lambda: LoHaConfig(r=2, alpha=3, target_modules=LAYERS),
    "loha: effective conv": lambda: LoHaConfig(r=2, alpha=3, target_modules=LAYERS, use_effective_conv2d=True),
    "lokr": lambda: LoKrConfig(r=2, alpha=3, target_modules=LAYERS, decompose_factor=4),
    "lokr: both factored": lambda: LoKrConfig(r=1, alpha=2, target_modules=LAYERS, decompose_both=True),
    "lokr: whole": lambda: LoKrConfig(r=64, alpha=40, target_modules=ATTENTION),
    "lokr: effective conv": lambda: LoKrConfig(r=2, alpha=3, target_modules=LAYERS, use_effective_conv2d=True),
    "ia3": lambda: IA3Config(target_modules=LAYERS, feedforward_modules=["ff.net.2", "fc2", "conv1"]),
}


def randomize(module: nn.Module) -> None:
    """What PEFT starts without effect."""
    torch.manual_seed(8)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape)
        if "magnitude" in name:
            parameter.data *= torch.exp(0.3 * noise)
        elif "ia3_" in name:
            parameter.data = 1 + 0.4 * noise
        elif any(word in name for word in ("lora_", "hada_", "lokr_")):
            parameter.data = 0.35 * noise


def saved(module: nn.Module, config: PeftConfig, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A folder of PEFT's with random numbers of the dtype, and the module with those merged into its weights."""
    wrapped = get_peft_model(copy.deepcopy(module), config)
    randomize(wrapped)
    for name, parameter in wrapped.named_parameters():
        if any(word in name for word in ("lora_", "hada_", "lokr_", "ia3_")):
            parameter.data = parameter.data.to(dtype).float()
    wrapped.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in load_file(weights).items()}, weights)
    merged: nn.Module = wrapped.merge_and_unload()
    return merged


def changes(base: nn.Module, merged: nn.Module, component: str) -> Changes:
    prefix = "" if component == "unet" else "text_model."
    own = dict(base.named_parameters())
    moved = {
        prefix + name.removeprefix(prefix): (parameter.detach().double() - own[name].detach().double()).numpy()
        for name, parameter in merged.named_parameters()
    }
    return {component: {name: change for name, change in moved.items() if np.abs(change).max() > 0}}


@pytest.fixture(scope="module")
def modules(tiny_model: Path) -> dict[str, nn.Module]:
    return {
        "unet": UNet2DConditionModel.from_pretrained(tiny_model / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(tiny_model / "text_encoder"),
    }


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # of the other component
@pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_gives_what_peft_merges(
    bench: Bench, modules: dict[str, nn.Module], tmp_path: Path, name: str, component: str, dtype: str
) -> None:
    base = modules[component]
    moved = changes(base, saved(base, CONFIGS[name](), tmp_path, DTYPES[dtype]), component)
    adapter = bench.engine.load_adapter(tmp_path, component=component)
    assert not adapter.report.unused and len(moved[component]) >= 4
    unchanged = bench.run(component, [(adapter, 0.0)])
    assert all(np.array_equal(unchanged[key], array) for key, array in bench.base[component].items())
    for multiplier in MULTIPLIERS:
        wanted = bench.merged(component, [(moved, multiplier)])
        assert bench.ratio(component, [(adapter, multiplier)], wanted) <= BOUND
