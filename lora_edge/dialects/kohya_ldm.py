"""kohya names over LDM blocks, the usual spelling of SDXL files: `lora_unet_input_blocks_4_1_proj_in`."""

from collections.abc import Iterator

from lora_edge.dialects.ldm import ldm_path
from lora_edge.dialects.paths import flat
from lora_edge.slots import SlotTable

PREFIXES = ("lora_unet", "oft_unet")


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`<prefix>_<flat LDM path>`; text encoders have the names of the kohya dialect."""
    if table.component == "unet" and (name := ldm_path(table, path)):
        yield from (f"{prefix}_{flat(name)}" for prefix in PREFIXES)
