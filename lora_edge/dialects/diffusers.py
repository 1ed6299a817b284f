"""diffusers names: `unet.down_blocks.0.attentions.0.proj_in`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`."""

from collections.abc import Iterator

from lora_edge.dialects.paths import paths
from lora_edge.slots import SlotTable


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`<component>.<path>`."""
    for own in paths(path):
        yield f"{table.component}.{own}"
