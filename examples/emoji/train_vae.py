"""The autoencoder: 64 px pictures <-> latents [8, 16, 16] of mean 0 and deviation 1.

It is trained on all icons on all grounds and in all styles, so that an adapter's look can be drawn at all. The loss
has a term of its own for blurred colour: without it, a small autoencoder spends everything on contours and loses green
and purple.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from paint import GROUNDS, HUES, WHITE, on_ground, random_ground, recolor
from styles import STYLES
from torch.nn import functional as F
from trainer import train

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 64,
    "scaling_factor": 1.0,
}
BATCH = 16
KL = 3e-4


def sample(icons: list[np.ndarray], favoured: int, rng: np.random.Generator) -> np.ndarray:
    """One training picture [64, 64, 3] in [0, 1]; the first `favoured` icons are what the UNet will learn."""
    icon = icons[rng.integers(favoured if rng.random() < 0.6 else len(icons))]
    if rng.random() < 0.3:
        return list(STYLES.values())[rng.integers(len(STYLES))](icon)
    if rng.random() < 0.25:
        icon = recolor(icon, list(HUES)[rng.integers(len(HUES))])
    ground = [WHITE, list(GROUNDS.values())[rng.integers(len(GROUNDS))], random_ground(rng)]
    return on_ground(icon, ground[rng.choice(3, p=[0.4, 0.4, 0.2])])


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures [64, 64, 3] in [0, 1] -> float32 [n, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2).contiguous() * 2 - 1


def chroma(images: torch.Tensor) -> torch.Tensor:
    """Red against green and blue against yellow, blurred by a factor of 4."""
    red, green, blue = F.avg_pool2d(images, 4).unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


def reconstruction(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    slopes = sum((output.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    return (
        F.l1_loss(output, target)
        + 2 * F.mse_loss(output, target)
        + 0.5 * slopes
        + F.l1_loss(chroma(output), chroma(target))
    )


def train_vae(rank: int, icons: list[np.ndarray], favoured: int, minutes: float, work: Path) -> None:
    """Four fifths of the time for the whole, the rest for the decoder alone with the latents as they will be used."""
    vae = AutoencoderKL(**CONFIG)
    rng = np.random.default_rng(rank + int(torch.randint(1 << 30, ()).item()))

    def loss() -> torch.Tensor:
        images = to_tensor([sample(icons, favoured, rng) for _ in range(BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample()).sample
        return reconstruction(output.float(), images) + KL * posterior.kl().mean() / posterior.mean[0].numel()

    vae.load_state_dict(train(vae, loss, minutes=0.8 * minutes, peak=2e-3, checkpoint=work / "vae.pt", label="vae"))
    fold_statistics(vae, icons[:favoured])
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def decoder_loss() -> torch.Tensor:
        images = to_tensor([sample(icons, favoured, rng) for _ in range(BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mean
            output = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        return reconstruction(output.float(), images)

    vae.load_state_dict(
        train(vae, decoder_loss, minutes=0.2 * minutes, peak=1.5e-3, checkpoint=work / "decoder.pt", label="decoder")
    )
    if rank == 0:
        vae.save_pretrained(work / "vae")


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, icons: list[np.ndarray]) -> None:
    """Moves the latents' mean and deviation into the two 1x1 convolutions at their border."""
    grounds = [WHITE, *GROUNDS.values()]
    images = to_tensor([on_ground(icon, ground) for icon in icons for ground in grounds])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    n = len(mean)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:n] /= deviation.view(-1, 1, 1, 1)
    inward.bias[:n] = (inward.bias[:n] - mean) / deviation
    inward.bias[n:] -= 2 * deviation.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= deviation.view(1, -1, 1, 1)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 64, 64] in [-1, 1] -> reconstructions of the same shape, and decibels [n]."""
    output = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(32)]).clamp(-1, 1)
    return output, -10 * ((output - images) / 2).square().mean((1, 2, 3)).log10()
