"""The UNet and the text encoder, trained together on latents that are encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from captions import Scene, caption, scenes
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from train_vae import to_tensor
from trainer import train
from transformers import CLIPTokenizer
from words import encode, text_encoder, train_tokenizer

CONFIG = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (48, 96, 128, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
BATCH = 16
EMPTY = 0.1  # share of captions left empty, for guidance
PEAK = 1.2e-3


class Painter(nn.Module):
    """Both trained parts, under the names that they have in a pipeline."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**CONFIG)
        # The fused attention's backward pass is slow on CPUs.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = text_encoder(tokenizer)

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Latents [n, 8, 16, 16], time steps [n], token ids [n, 32] -> predicted velocity like the latents."""
        return self.unet(noisy, steps, self.text_encoder(ids).last_hidden_state).sample


def velocity_loss(
    painter: nn.Module, scheduler: DDIMScheduler, latents: torch.Tensor, ids: torch.Tensor, earliest: int = 0
) -> torch.Tensor:
    """Mean squared error of the velocity at random time steps; latents [n, c, h, w], ids [n, positions]."""
    noise = torch.randn_like(latents)
    steps = torch.randint(earliest, scheduler.config.num_train_timesteps, (len(latents),))
    with torch.autocast("cpu", torch.bfloat16):
        output = painter(scheduler.add_noise(latents, noise, steps), steps, ids)
    return F.mse_loss(output.float(), scheduler.get_velocity(latents, noise, steps))


def draw_scene(by_icon: dict[str, list[Scene]], rng: np.random.Generator) -> Scene:
    """Every concept equally often; half of the time on white, and mostly in its own colour."""
    options = by_icon[list(by_icon)[rng.integers(len(by_icon))]]
    white, recolored = rng.random() < 0.5, rng.random() < 0.5
    for test in (lambda s: (s.color is not None) == recolored, lambda s: (s.ground == "white") == white):
        options = [scene for scene in options if test(scene)] or options
    return options[rng.integers(len(options))]


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, listed: list[Scene], icons: dict[str, np.ndarray]) -> dict[Scene, torch.Tensor]:
    """Latents [8, 16, 16] by scene."""
    latents: dict[Scene, torch.Tensor] = {}
    for start in range(0, len(listed), 32):
        part = listed[start : start + 32]
        encoded = vae.encode(to_tensor([scene.draw(icons) for scene in part])).latent_dist.mean
        latents |= dict(zip(part, encoded, strict=True))
    return latents


def make_tokenizer(concepts: dict[str, dict], folder: Path) -> CLIPTokenizer:
    """Trained on captions of every scene, from a fixed seed: each process makes the same one."""
    rng = np.random.default_rng(0)
    texts = [caption(scene, concepts[scene.icon], rng) for scene in scenes(concepts) for _ in range(4)]
    return train_tokenizer(texts, folder)


def train_unet(rank: int, concepts: dict[str, dict], icons: dict[str, np.ndarray], minutes: float, work: Path) -> None:
    tokenizer = make_tokenizer(concepts, work / f"tokenizer-{rank}")
    latents = encode_scenes(AutoencoderKL.from_pretrained(work / "vae"), scenes(concepts), icons)
    by_icon = {icon: [scene for scene in latents if scene.icon == icon] for icon in concepts}
    scheduler = DDIMScheduler(**SCHEDULE)
    painter = Painter(tokenizer)
    rng = np.random.default_rng(rank + int(torch.randint(1 << 30, ()).item()))

    def loss() -> torch.Tensor:
        drawn = [draw_scene(by_icon, rng) for _ in range(BATCH)]
        texts = ["" if rng.random() < EMPTY else caption(scene, concepts[scene.icon], rng) for scene in drawn]
        return velocity_loss(
            painter, scheduler, torch.stack([latents[scene] for scene in drawn]), encode(tokenizer, texts)
        )

    train(painter, loss, minutes=minutes, peak=PEAK, checkpoint=work / "unet.pt", label="unet")
