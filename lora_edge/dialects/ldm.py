"""Generic LDM names, as ComfyUI writes them: `diffusion_model.input_blocks.1.1.proj_in`.

The map from diffusers to LDM follows the shared layout of both UNets: with n = layers_per_block, level i of the
encoder fills input blocks (n + 1) i + 1 to (n + 1) i + n + 1, the last being the downsampler, and level i of the
decoder fills output blocks (n + 1) i to (n + 1) i + n (kohya-ss/sd-scripts, library/sdxl_model_util.py,
make_unet_conversion_map).
"""

import re
from collections.abc import Iterator, Mapping

from lora_edge.slots import SlotTable

RESNET: Mapping[str, str] = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}

TOP: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

MIDDLE: Mapping[str, str] = {
    "resnets.0": "middle_block.0",
    "attentions.0": "middle_block.1",
    "resnets.1": "middle_block.2",
}

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MID = re.compile(r"mid_block\.((?:resnets|attentions)\.\d+)\.(.+)")


def ldm_path(table: SlotTable, path: str) -> str | None:
    """The LDM path of a UNet layer, None where it has none or `table.facts` lacks `layers_per_block`."""
    if path in TOP:
        return TOP[path]
    if mid := _MID.fullmatch(path):
        part, rest = mid.groups()
        return f"{MIDDLE[part]}.{RESNET.get(rest, rest)}" if part in MIDDLE else None
    block = _BLOCK.fullmatch(path)
    if block is None or "layers_per_block" not in table.facts:
        return None
    side, part, rest = block[1], block[3], block[5]
    level, index = int(block[2]), int(block[4])
    depth = table.facts["layers_per_block"] + 1
    first = depth * level
    places = {
        ("down", "resnets"): f"input_blocks.{first + index + 1}.0.{RESNET.get(rest, rest)}",
        ("down", "attentions"): f"input_blocks.{first + index + 1}.1.{rest}",
        ("down", "downsamplers"): f"input_blocks.{first + depth}.0.op",
        ("up", "resnets"): f"output_blocks.{first + index}.0.{RESNET.get(rest, rest)}",
        ("up", "attentions"): f"output_blocks.{first + index}.1.{rest}",
        ("up", "upsamplers"): f"output_blocks.{first + depth - 1}.{_upsampler(table, level)}.conv",
    }
    return places.get((side, part))


def _upsampler(table: SlotTable, level: int) -> int:
    """The upsampler stands after the resnet and, where the level has one, after the attention."""
    return 1 + (f"up_blocks.{level}.attentions.0.transformer_blocks.0.attn1.to_q" in table.by_name)


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`diffusion_model.<LDM path>`."""
    if table.component == "unet" and (name := ldm_path(table, path)):
        yield f"diffusion_model.{name}"
