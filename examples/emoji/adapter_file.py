"""Trained low-rank weights -> one .safetensors file, in the three spellings that are common.

Layers come in as PEFT names them: `<path>.lora_A.weight` [rank, in] and `<path>.lora_B.weight` [out, rank], for the
UNet and, if it was trained too, the text encoder. In every file alpha equals the rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    unet: Tensors
    text_encoder: Tensors  # empty: not trained
    rank: int
    trigger: str
    steps: int
    pictures: int


def with_text_model(path: str) -> str:
    """transformers 5 leaves out a level that adapter files everywhere have."""
    return path if path.startswith("text_model.") else f"text_model.{path}"


def kohya(trained: Trained, name: str) -> tuple[Tensors, dict[str, str]]:
    """`lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; `lora_te_...` for the text encoder."""
    tensors: Tensors = {}
    for prefix, part in (
        ("lora_unet", trained.unet),
        ("lora_te", {with_text_model(key): value for key, value in trained.text_encoder.items()}),
    ):
        for key, value in part.items():
            path, matrix = key.rsplit(".lora_", 1)
            module = f"{prefix}_{path.replace('.', '_')}"
            tensors[f"{module}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = value
            tensors[f"{module}.alpha"] = torch.tensor(float(trained.rank))
    return tensors, {
        "ss_output_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(trained.rank),
        "ss_network_alpha": str(float(trained.rank)),
        "ss_steps": str(trained.steps),
        "ss_num_train_images": str(trained.pictures),
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "lora-edge emoji",
        "ss_mixed_precision": "bf16",
        "ss_tag_frequency": json.dumps({name: {trained.trigger: trained.pictures}}),
    }


def peft(trained: Trained, name: str) -> tuple[Tensors, dict[str, str]]:
    """`base_model.model.<path>.lora_A.weight`: one model in one file, as `PeftModel.save_pretrained` writes it."""
    return {f"base_model.model.{key}": value for key, value in trained.unet.items()}, {"format": "pt"}


def diffusers(trained: Trained, name: str) -> tuple[Tensors, dict[str, str]]:
    """`unet.<path>.lora_A.weight`, `text_encoder.<path>...`, as `StableDiffusionPipeline.save_lora_weights` does."""
    return {
        f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in getattr(trained, part).items()
    }, {"format": "pt"}


FORMATS: dict[str, Callable[[Trained, str], tuple[Tensors, dict[str, str]]]] = {
    "kohya": kohya,
    "peft": peft,
    "diffusers": diffusers,
}


def write(trained: Trained, path: Path, form: str) -> None:
    """Half precision; beside the target first, so that nobody reads half a file."""
    tensors, metadata = FORMATS[form](trained, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({key: value.detach().half().contiguous() for key, value in tensors.items()}, part, metadata)
    part.chmod(0o644)
    part.replace(path)
