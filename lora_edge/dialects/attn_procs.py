"""The oldest diffusers names, of attention processors: `unet. ... .attn1.processor.to_q_lora`, `to_out_lora`.

The first releases wrote UNet names without `unet.`; text encoders borrowed the UNet's words for their own layers
(diffusers, utils/state_dict_utils.py, UNET_TO_DIFFUSERS and DIFFUSERS_OLD_TO_PEFT).
"""

from collections.abc import Iterator, Mapping

from lora_edge.dialects.paths import paths
from lora_edge.slots import SlotTable

UNET: Mapping[str, str] = {
    "to_q": "to_q_lora",
    "to_k": "to_k_lora",
    "to_v": "to_v_lora",
    "to_out.0": "to_out_lora",
}

TEXT: Mapping[str, str] = {
    "q_proj": "to_q_lora",
    "k_proj": "to_k_lora",
    "v_proj": "to_v_lora",
    "out_proj": "to_out_lora",
}


def _renamed(path: str, words: Mapping[str, str], between: str) -> str | None:
    for layer, word in words.items():
        if path.endswith(f".{layer}"):
            return f"{path.removesuffix(layer)}{between}{word}"
    return None


def _unet(path: str) -> Iterator[str]:
    for between in ("processor.", ""):
        if name := _renamed(path, UNET, between):
            yield f"unet.{name}"
            yield name


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`[unet.]<attention>.processor.to_q_lora`, `<text encoder>.<attention>.to_q_lora`."""
    if table.component == "unet":
        yield from _unet(path)
        return
    for own in paths(path):
        if name := _renamed(own, TEXT, ""):
            yield f"{table.component}.{name}"
