"""Checkpoints -> the folder of a standard `StableDiffusionPipeline`, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from train_unet import SCHEDULE, Painter
from transformers import CLIPTokenizer


def assemble(work: Path, target: Path) -> None:
    """Takes the averaged weights of the last checkpoint, be the training over or not."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer-0")
    painter = Painter(tokenizer)
    painter.load_state_dict(torch.load(work / "unet.pt", weights_only=True)["ema"])
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=painter.text_encoder,
        tokenizer=tokenizer,
        unet=painter.unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16).save_pretrained(target)
    shutil.rmtree(target / "tokenizer")
    shutil.copytree(work / "tokenizer-0", target / "tokenizer")
    restore_prefix(target / "text_encoder" / "model.safetensors")
    for path in target.glob("*/*"):
        path.chmod(0o644)
        if path.name == "config.json":
            config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
            path.write_text(json.dumps(config, indent=2) + "\n")


def restore_prefix(path: Path) -> None:
    """transformers 5 leaves out the level `text_model.`; every version reads files that have it."""
    tensors = load_file(path)
    save_file(
        {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in tensors.items()},
        path,
        {"format": "pt"},
    )
