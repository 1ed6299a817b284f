"""Block weights: one ratio per block of the UNet, and one for the text encoders.

Blocks are named as in hako-mikan/sd-webui-lora-block-weight: BASE is the text encoders, IN00 to IN11, M00 and OUT00 to
OUT11 are LDM's `input_blocks`, `middle_block` and `output_blocks`, whatever the base; SDXL has IN00 to IN08 and OUT00
to OUT08. Layers outside every block (time embedding, last convolution) keep ratio 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.dialects.ldm import ldm_path
from lora_edge.slots import SlotTable

BLOCKS: tuple[str, ...] = (
    "BASE",
    *(f"IN{block:02}" for block in range(12)),
    "M00",
    *(f"OUT{block:02}" for block in range(12)),
)

_LISTS = {
    12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    20: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    26: " ".join(BLOCKS),
}
ORDERS: Mapping[int, tuple[str, ...]] = {count: tuple(names.split()) for count, names in _LISTS.items()}
"""Which blocks a list of so many values names: LoRA for SDXL, LoRA for SD1, every block of SDXL, every block of SD1."""

PRESETS: Mapping[str, str] = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}

RULE_PRESETS: Mapping[str, str] = {
    "ATTNDEEPON": "IN05-OUT05:attn:1",
    "ATTNDEEPOFF": "IN05-OUT05:attn:0",
    "PROJDEEPOFF": "IN05-OUT05:proj:0",
}

_PLACES: Mapping[str, str] = {"input_blocks": "IN", "output_blocks": "OUT"}
_NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Rule:
    """An element rule: the layers that it picks have this ratio instead of their block's.

    Attributes:
        blocks: names of blocks; none for every layer.
        other_blocks: whether it picks the layers outside these blocks instead.
        elements: pieces of a layer's LDM name spelled with underscores (`attn`, `attn2_to_k`); none for every layer.
        other_elements: whether it picks the layers that hold none of them instead.
        ratio: what they get.
    """

    blocks: tuple[str, ...]
    other_blocks: bool
    elements: tuple[str, ...]
    other_elements: bool
    ratio: float

    def picks(self, block: str, name: str) -> bool:
        """Whether it picks the layer of this name, in this block ("" for none)."""
        inside = not self.blocks or block in self.blocks
        holds = not self.elements or any(element in name for element in self.elements)
        return inside != self.other_blocks and holds != self.other_elements


@dataclass(frozen=True)
class BlockWeights:
    """Ratios by which the multiplier of each block is multiplied.

    Attributes:
        values: one per name of `BLOCKS`, in that order.
        rules: later ones win.
    """

    values: tuple[float, ...] = (1.0,) * len(BLOCKS)
    rules: tuple[Rule, ...] = ()

    @classmethod
    def listed(cls, values: Sequence[float], rules: tuple[Rule, ...] = ()) -> "BlockWeights":
        """From 12, 17, 20 or 26 values, in the order of `ORDERS`; blocks that the list lacks have ratio 0."""
        given = dict(zip(ORDERS[len(values)], values, strict=True))
        return cls(tuple(given.get(block, 0.0) for block in BLOCKS), rules)

    def ratios(self, table: SlotTable) -> FloatArray:
        """One ratio per slot, in their order, then one per norm, in theirs: [slots + norms], float32."""
        paths = [*(slot.name for slot in table.slots), *table.norms]
        return np.array([self._ratio(table, path) for path in paths], np.float32)

    def _ratio(self, table: SlotTable, path: str) -> float:
        name = path if table.component.startswith("text_encoder") else ldm_path(table, path) or path
        block = _block(table, name)
        ratio = self.values[BLOCKS.index(block)] if block else 1.0
        for rule in self.rules:
            if rule.picks(block, name.replace(".", "_")):
                ratio = rule.ratio
        return ratio


def _block(table: SlotTable, name: str) -> str:
    """The block of a layer by its LDM name, "" outside all."""
    if table.component.startswith("text_encoder"):
        return "BASE"
    if name.startswith("middle_block."):
        return "M00"
    place = _NUMBERED.match(name)
    block = f"{_PLACES[place[1]]}{int(place[2]):02}" if place else ""
    return block if block in BLOCKS else ""
