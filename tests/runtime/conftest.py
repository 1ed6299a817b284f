"""Adapters for the tiny model, trained by nobody: random weights, written by diffusers and peft themselves."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from lora_edge.runtime.engine import Engine

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def randomize(module: torch.nn.Module, seed: int) -> None:
    """peft starts `lora_B` at zero; an adapter that changes nothing would test nothing."""
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            scale = 0.3 if "lora_B" in name else parameter.shape[1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=noise) * scale


@pytest.fixture(scope="session")
def styles(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ink` (diffusers, UNet and text encoder), `glow` (kohya, convs too) and `fog` (a PEFT folder)."""
    folder = tmp_path_factory.mktemp("styles")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    states = {}
    for seed, (name, targets) in enumerate(
        {"ink": [*ATTENTION, "ff.net.2"], "glow": [*ATTENTION, "conv1", "conv_shortcut"], "fog": ATTENTION}.items()
    ):
        config = LoraConfig(r=4 + seed, lora_alpha=4 + seed, target_modules=targets)
        pipe.unet.add_adapter(config, name)
        randomize(pipe.unet, seed)
        states[name] = get_peft_model_state_dict(pipe.unet, adapter_name=name)
        if name == "fog":
            peft_folder = folder / "fog"
            peft_folder.mkdir()
            config.save_pretrained(str(peft_folder))
            named = {f"base_model.model.{key}": tensor for key, tensor in states[name].items()}
            save_file(
                {key: tensor.contiguous() for key, tensor in named.items()}, peft_folder / "adapter_model.safetensors"
            )
        pipe.unet.delete_adapters(name)
    pipe.text_encoder.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "fc1"]), "ink")
    randomize(pipe.text_encoder, 9)
    text = get_peft_model_state_dict(pipe.text_encoder, adapter_name="ink")
    StableDiffusionPipeline.save_lora_weights(
        folder, states["ink"], text, weight_name="ink.safetensors", safe_serialization=True
    )
    (folder / "deep").mkdir()
    kohya = convert_state_dict_to_kohya({f"unet.{key}": tensor for key, tensor in states["glow"].items()})
    save_file({key: tensor.contiguous() for key, tensor in kohya.items()}, folder / "deep" / "glow.safetensors")
    return folder


@pytest.fixture(scope="session")
def engine(tiny_bundle: Path, styles: Path) -> Engine:
    return Engine.open(tiny_bundle, lora_dir=styles, threads=1)
