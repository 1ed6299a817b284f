"""A diffusers folder of Stable Diffusion's architecture with random weights in fp16, as such models are published."""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.export_sd15 import TEXT, VAE

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}


def main() -> None:
    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    makers = {
        "unet": lambda: UNet2DConditionModel(**settings),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT)),
        "vae": lambda: AutoencoderKL(**VAE),
    }
    for name, make in makers.items():
        make().half().save_pretrained(folder / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    main()
