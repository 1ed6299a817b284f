"""Which base model a file looks made for, from its tensors: a hint for messages, never a decision."""

import re
from collections.abc import Iterable

from lora_edge.slots import SlotTable

CROSS_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL", 1280: "the SDXL refiner"}

# Names that only one family has; the first that is found speaks.
MARKS = (
    (re.compile(r"double_blocks|single_transformer_blocks|single_blocks"), "Flux"),
    (re.compile(r"joint_blocks|add_q_proj"), "Stable Diffusion 3"),
    (re.compile(r"add_embedding|label_emb|transformer_blocks[._][1-9]|lora_te2_|text_encoder_2\."), "SDXL"),
    (re.compile(r"down_blocks[._]3|input_blocks[._](9|1\d)|output_blocks[._](9|1\d)"), "Stable Diffusion 1 or 2"),
)

_CROSS = re.compile(r"attn2[._](processor\.)?to_[kv](_lora)?$")


def cross_width(downs: Iterable[tuple[str, tuple[int, ...]]]) -> int | None:
    """Input width of the cross-attention's keys and values; downs: (module name, shape of its `down`)."""
    return next((shape[1] for name, shape in downs if len(shape) > 1 and _CROSS.search(name)), None)


def looks_like(names: Iterable[str], width: int | None) -> str | None:
    """A sentence part such as "SDXL (cross-attention width 2048)", None where nothing tells.

    Args:
        names: module names of the file.
        width: what `cross_width` found.
    """
    if width is not None:
        return f"{CROSS_WIDTHS.get(width, 'a base of its own')} (cross-attention width {width})"
    together = "\n".join(names)
    return next((family for mark, family in MARKS if mark.search(together)), None)


def mismatch_hint(names: Iterable[str], width: int | None, tables: Iterable[SlotTable]) -> str:
    """The end of a refusal: what the file looks made for and what the bundle has, or nothing."""
    family = looks_like(names, width)
    own = next((table.facts["cross_attention_dim"] for table in tables if "cross_attention_dim" in table.facts), None)
    if family is None or (width is not None and width == own):
        return ""
    return f"; the file looks made for {family}" + (f", the bundle has width {own}" if own else "")
