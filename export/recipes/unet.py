"""The UNet of the SD1 architecture, any channel sizes and depths."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_edge.export.recipes.base import Port, Recipe, seeded

# Config entries that add inputs or layers which the graph contract has no place for yet.
_UNSUPPORTED = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


class _Traced(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out: Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


def _load(class_name: str, folder: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model: nn.Module = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype)
    return model.eval()


def _example(config: Mapping[str, Any], rows: int, size: int) -> tuple[Tensor, ...]:
    noise = seeded(0)
    sample = torch.randn(rows, config["in_channels"], size, size + 2 ** (levels(config) - 1), generator=noise)
    timestep = torch.linspace(1, 951, rows)
    context = torch.randn(rows, 77, config["cross_attention_dim"], generator=noise)
    return sample, timestep, context


def levels(config: Mapping[str, Any]) -> int:
    """How many resolutions the UNet works at; sizes are multiples of 2 ** (levels - 1) latents."""
    return len(config["block_out_channels"])


def _check(config: Mapping[str, Any]) -> str | None:
    odd = [key for key in _UNSUPPORTED if config.get(key) is not None]
    if odd:
        return f"its UNet has {odd[0]}={config[odd[0]]!r}, which is not the SD1 architecture"
    if not isinstance(config["cross_attention_dim"], int):
        return "its UNet has a different cross_attention_dim in every block, which is not the SD1 architecture"
    return None


def _facts(config: Mapping[str, Any]) -> dict[str, int]:
    facts = {"levels": levels(config), "cross_attention_dim": config["cross_attention_dim"]}
    if isinstance(config["layers_per_block"], int):
        facts["layers_per_block"] = config["layers_per_block"]
    return facts


_MAP = {0: "rows", 2: "height", 3: "width"}

UNET = Recipe(
    component="unet",
    folder="unet",
    classes=("UNet2DConditionModel",),
    load=_load,
    wrap=_Traced,
    inputs=(
        Port("sample", _MAP),
        Port("timestep", {0: "steps"}),
        Port("encoder_hidden_states", {0: "rows", 1: "tokens"}),
    ),
    outputs=lambda module: (Port("out_sample", _MAP),),
    example=_example,
    reference=lambda config: int(config.get("sample_size") or 64),
    varying=("sample", "timestep"),
    check=_check,
    facts=_facts,
)
