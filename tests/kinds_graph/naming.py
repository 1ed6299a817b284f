"""How files name layers: written out by hand for the layers of the tiny model that the tests change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Layers = Mapping[str, tuple[str, ...]]  # component -> slots or norms

_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
_TEXT = "text_model.encoder.layers"

# Slots and norms of every type that an adapter meets, the UNet's with their LDM names (kohya-ss/sd-scripts,
# library/sdxl_model_util.py, make_unet_conversion_map, for one layer per block).
LDM: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    f"{_BLOCK}.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    f"{_BLOCK}.attn1.to_out.0": "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
    f"{_BLOCK}.attn2.to_k": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    f"{_BLOCK}.ff.net.0.proj": "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    f"{_BLOCK}.ff.net.2": "input_blocks.1.1.transformer_blocks.0.ff.net.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_k": "middle_block.1.transformer_blocks.0.attn1.to_k",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0.conv2": "output_blocks.2.0.out_layers.3",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v": "output_blocks.3.1.transformer_blocks.0.attn2.to_v",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0.norm1": "input_blocks.1.0.in_layers.0",
    "down_blocks.1.resnets.0.norm2": "input_blocks.3.0.out_layers.0",
    "down_blocks.0.attentions.0.norm": "input_blocks.1.1.norm",
    f"{_BLOCK}.norm2": "input_blocks.1.1.transformer_blocks.0.norm2",
    "conv_norm_out": "out.0",
}

NORMS: Layers = {
    "unet": tuple(path for path in LDM if "norm" in path),
    "text_encoder": (f"{_TEXT}.0.layer_norm1", f"{_TEXT}.1.layer_norm2", "text_model.final_layer_norm"),
}

SLOTS: Layers = {
    "unet": tuple(path for path in LDM if "norm" not in path),
    "text_encoder": tuple(
        f"{_TEXT}.{path}"
        for path in (
            "0.self_attn.q_proj",
            "0.self_attn.k_proj",
            "0.self_attn.out_proj",
            "0.mlp.fc1",
            "0.mlp.fc2",
            "1.self_attn.v_proj",
        )
    ),
}

PROCESSORS: Mapping[str, str] = {  # the oldest diffusers names of attention layers
    "to_q": "processor.to_q_lora",
    "to_k": "processor.to_k_lora",
    "to_v": "processor.to_v_lora",
    "to_out.0": "processor.to_out_lora",
    "q_proj": "to_q_lora",
    "k_proj": "to_k_lora",
    "v_proj": "to_v_lora",
    "out_proj": "to_out_lora",
}


def _factors(down: str, up: str) -> dict[str, str]:
    return {"lora_down.weight": down, "lora_up.weight": up}


KOHYA: dict[str, str] = {}
PEFT = _factors("lora_A.weight", "lora_B.weight")
DEFAULT = {
    **_factors("lora_A.default.weight", "lora_B.default.weight"),
    "lora_magnitude_vector": "lora_magnitude_vector.default.weight",
}
DOTTED = _factors("lora.down.weight", "lora.up.weight")
LINEAR_LAYER = _factors("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
BARE = _factors("down.weight", "up.weight")


@dataclass(frozen=True)
class Naming:
    """One way to name layers and some leaves; all others are spelled as LyCORIS does everywhere.

    Attributes:
        module: (component, path) -> the layer's name in a file, None where it has none.
        leaves: component -> LyCORIS' spelling of a leaf -> the naming's own.
        alpha: whether a LoRA has an alpha beside it.
        only: names of the examples that it is met with, empty for all.
    """

    module: Callable[[str, str], str | None]
    leaves: Mapping[str, Mapping[str, str]]
    alpha: bool = True
    only: tuple[str, ...] = ()

    def fits(self, example: str) -> bool:
        return not self.only or example in self.only

    def layers(self, every: Layers) -> dict[str, tuple[str, ...]]:
        """Those that the naming can name."""
        named = {component: tuple(p for p in paths if self.module(component, p)) for component, paths in every.items()}
        return {component: paths for component, paths in named.items() if paths}

    def key(self, component: str, path: str, leaf: str) -> str:
        return f"{self.module(component, path)}.{self.leaves[component].get(leaf, leaf)}"


def _flat(unet: str, text: str) -> Callable[[str, str], str]:
    prefixes = {"unet": unet, "text_encoder": text}
    return lambda component, path: f"{prefixes[component]}_{path.replace('.', '_')}"


def _kohya_ldm(component: str, path: str) -> str:
    return _flat("lora_unet", "lora_te1")(component, LDM.get(path, path))


def _ldm(component: str, path: str) -> str | None:
    return f"diffusion_model.{LDM[path]}" if path in LDM else None


def _processors(component: str, path: str) -> str | None:
    layer = next((layer for layer in PROCESSORS if path.endswith(f".{layer}")), None)
    return f"{component}.{path.removesuffix(layer)}{PROCESSORS[layer]}" if layer else None


def _without_level(component: str, path: str) -> str:
    return f"{component}.{path.removeprefix('text_model.')}"


def _both(leaves: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    return {"unet": leaves, "text_encoder": leaves}


NAMINGS: Mapping[str, Naming] = {
    "kohya": Naming(_flat("lora_unet", "lora_te"), _both(KOHYA)),
    "kohya-ldm": Naming(_kohya_ldm, _both(KOHYA)),
    "lycoris": Naming(_flat("lycoris", "lycoris"), _both(KOHYA)),
    "ldm": Naming(_ldm, _both(PEFT)),
    "diffusers": Naming(
        lambda component, path: f"{component}.{path}", {"unet": DOTTED, "text_encoder": LINEAR_LAYER}, alpha=False
    ),
    "diffusers-peft": Naming(_without_level, _both(PEFT), alpha=False),
    "peft": Naming(lambda component, path: f"base_model.model.{path}", _both(PEFT), alpha=False),
    "peft-default": Naming(
        lambda component, path: f"base_model.model.{component}.{path}",
        _both(DEFAULT),
        alpha=False,
        only=("lora", "dora: peft"),
    ),
    "attn-procs": Naming(_processors, _both(BARE), alpha=False, only=("lora",)),
    "kohya-oft": Naming(_flat("oft_unet", "lora_te"), _both(KOHYA), only=("oft: constrained",)),
}
