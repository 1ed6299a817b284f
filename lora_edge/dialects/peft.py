"""PEFT names: `base_model.model.down_blocks.0.attentions.0.proj_in`, which do not say the component.

They are met with the component as well (`base_model.model.unet. ...`) and bare, as `get_peft_model_state_dict` gives
them.
"""

from collections.abc import Iterator

from lora_edge.dialects.paths import paths
from lora_edge.slots import SlotTable

WRAPPER = "base_model.model."


def spell(table: SlotTable, path: str) -> Iterator[str]:
    """`base_model.model.[<component>.]<path>` and `<path>`."""
    for own in paths(path):
        yield f"{WRAPPER}{own}"
        yield f"{WRAPPER}{table.component}.{own}"
        yield own
