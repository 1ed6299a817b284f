"""The two halves of the autoencoder. They take no updates: adapters of Stable Diffusion leave the VAE alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_edge.export.recipes.base import Port, Recipe, seeded


class _Decoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: Tensor) -> Tensor:
        out: Tensor = self.model.decode(latent_sample, return_dict=False)[0]  # type: ignore[operator]
        return out


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.model.encode(sample).latent_dist.parameters  # type: ignore[operator]
        return out


def _load(class_name: str, folder: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL

    model: nn.Module = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype)
    return model.eval()


def _latents(config: Mapping[str, Any], rows: int, size: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, config["latent_channels"], size, size + 2, generator=seeded(0)),)


def _pixels(config: Mapping[str, Any], rows: int, size: int) -> tuple[Tensor, ...]:
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    shape = (rows, config["in_channels"], size * factor, (size + 2) * factor)
    return (torch.randn(*shape, generator=seeded(0)).clamp(-1, 1),)


_MAP = {0: "rows", 2: "height", 3: "width"}


def _recipe(component: str, wrap: type[nn.Module], given: str, made: str, example: Any) -> Recipe:
    return Recipe(
        component=component,
        folder="vae",
        classes=("AutoencoderKL",),
        load=_load,
        wrap=wrap,
        inputs=(Port(given, _MAP),),
        outputs=lambda module: (Port(made, _MAP),),
        example=example,
        reference=lambda config: 0,
        slotted=False,
    )


VAE_DECODER = _recipe("vae_decoder", _Decoder, "latent_sample", "sample", _latents)
VAE_ENCODER = _recipe("vae_encoder", _Encoder, "sample", "latent_parameters", _pixels)
