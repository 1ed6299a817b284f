"""The layers of the known families are those of the real classes, built without memory."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_edge.families import FAMILIES, tables

D, CD, U, CU = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
LINEAR = {"use_linear_projection": True}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}

# unet/config.json of the published models, but for what the class takes by default.
UNETS: dict[str, dict[str, Any]] = {
    "SD1": {"cross_attention_dim": 768},
    "SD2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], **LINEAR},
    "SDXL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (D, CD, CD),
        "up_block_types": (CU, CU, U),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
        **LINEAR,
        **ADDED,
    },
    "SDXL refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (D, CD, CD, D),
        "up_block_types": (U, CU, CU, U),
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
        **LINEAR,
        **ADDED,
    },
}
TEXTS = {
    "SD1": {"text_encoder": (CLIPTextModel, 12, 768)},
    "SD2": {"text_encoder": (CLIPTextModel, 23, 1024)},
    "SDXL": {"text_encoder": (CLIPTextModel, 12, 768), "text_encoder_2": (CLIPTextModelWithProjection, 32, 1280)},
    "SDXL refiner": {"text_encoder_2": (CLIPTextModelWithProjection, 32, 1280)},
}


def layers(model: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names and weight shapes; transformers 5 leaves `text_model.` out in one of its two classes."""
    return {
        name if name.startswith((prefix, "text_projection")) else prefix + name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_the_published_models(family: str) -> None:
    own = {table.component: {slot.name: slot.weight_shape for slot in table} for table in tables(family)}
    with torch.device("meta"):
        wanted = {"unet": layers(UNet2DConditionModel(**UNETS[family]))}
        for component, (model, depth, width) in TEXTS[family].items():
            config = CLIPTextConfig(
                num_hidden_layers=depth,
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_attention_heads=width // 64,
            )
            wanted[component] = layers(model(config), "text_model.")
    assert own == wanted
