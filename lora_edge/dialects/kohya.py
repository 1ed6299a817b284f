"""kohya names over diffusers blocks: `lora_unet_down_blocks_0_attentions_0_proj_in`, `lora_te_text_model_encoder_...`.

The prefixes are those of kohya-ss/sd-scripts, networks/lora.py and oft.py; `lora_te1` is also met for the only text
encoder of SD1, and `lora_te` for the first one of SDXL. `lycoris` is what the stand-alone wrapper of LyCORIS writes for
whichever model it wraps.
"""

from collections.abc import Iterator, Mapping

from lora_edge.dialects.paths import flat, paths
from lora_edge.slots import SlotTable

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet", "oft_unet", "lycoris"),
    "text_encoder": ("lora_te", "lora_te1", "lycoris"),
    "text_encoder_2": ("lora_te2", "lycoris"),
}


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`<prefix>_<flat path>`, also with the last level apart.

    The latter is what diffusers makes of the names of DoRA magnitudes, which have no `.weight` behind them
    (utils/state_dict_utils.py, convert_state_dict_to_kohya).
    """
    for prefix in PREFIXES.get(table.component, ()):
        for own in paths(path):
            above, _, last = f"{prefix}.{own}".rpartition(".")
            yield flat(f"{above}.{last}")
            yield f"{flat(above)}.{last}"
