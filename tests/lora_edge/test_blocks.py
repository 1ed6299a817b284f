"""Block weights on the real UNet layouts: values, presets, random ones and rules per element."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from lora_edge.blocks import BLOCKS, ORDERS, PRESETS, BlockWeights
from lora_edge.errors import PromptError
from lora_edge.prompt import parse
from lora_edge.prompt.blockvalues import MAX_RULES
from lora_edge.slots import Slot, SlotTable

ROWS = json.loads((Path(__file__).parent / "prompts" / "blocks.json").read_text("utf-8"))
TEXT = SlotTable(
    "text_encoder", (Slot("text_model.encoder.layers.0.mlp.fc1", 2, 2),), {"text_model.final_layer_norm": 2}
)


def weights(tag: str) -> BlockWeights:
    found = parse(tag).calls[0].multiplier.blocks
    assert found is not None
    return found


def unet(names: str, **norms: int) -> SlotTable:
    slots = tuple(Slot(name, 4, 4) for name in names.split())
    return SlotTable("unet", slots, norms, {"layers_per_block": 2, "levels": 4, "cross_attention_dim": 768})


@pytest.mark.parametrize(("tag", "expected"), ROWS)
def test_the_values_of_a_tag(tag: str, expected: dict[str, float]) -> None:
    named = {block: value for names, value in expected.items() for block in names.split()}
    values = [named.get(block, named.get("*")) for block in BLOCKS]
    assert weights(tag).values == pytest.approx(values)


def test_every_list_names_blocks_and_every_preset_is_a_list() -> None:
    assert all(len(order) == count == len(set(order) & set(BLOCKS)) for count, order in ORDERS.items())
    assert all(preset.count(",") + 1 in ORDERS for preset in PRESETS.values())


SD1 = {  # SDXL numbers its blocks in the same way and has one level less
    "conv_in": "IN00",
    "down_blocks.0.resnets.0.conv1": "IN01",
    "down_blocks.0.attentions.1.proj_in": "IN02",
    "down_blocks.0.downsamplers.0.conv": "IN03",
    "down_blocks.1.resnets.0.conv_shortcut": "IN04",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k": "IN08",
    "down_blocks.2.downsamplers.0.conv": "IN09",
    "down_blocks.3.resnets.1.time_emb_proj": "IN11",
    "mid_block.attentions.0.proj_out": "M00",
    "mid_block.resnets.1.conv2": "M00",
    "up_blocks.0.resnets.0.conv1": "OUT00",
    "up_blocks.0.upsamplers.0.conv": "OUT02",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": "OUT03",
    "up_blocks.1.upsamplers.0.conv": "OUT05",
    "up_blocks.3.attentions.2.proj_in": "OUT11",
}


@pytest.mark.parametrize(("path", "block"), SD1.items())
def test_a_layer_of_sd1_stands_in_the_block_of_its_ldm_name(path: str, block: str) -> None:
    places = BlockWeights(tuple(map(float, range(26))))
    assert places.ratios(unet(path)).tolist() == [BLOCKS.index(block)]


@pytest.mark.parametrize("path", ["time_embedding.linear_1", "add_embedding.linear_2", "conv_out", "no.such.layer"])
def test_a_layer_outside_all_blocks_keeps_1(path: str) -> None:
    assert weights("<lora:a:lbw=NONE>").ratios(unet(path)).tolist() == [1]


def test_slots_come_before_norms_and_text_encoders_have_the_base() -> None:
    table = unet("mid_block.resnets.0.conv1 conv_out", **{"up_blocks.3.resnets.0.norm1": 4, "conv_norm_out": 4})
    ratios = BlockWeights(tuple(map(float, range(26)))).ratios(table)
    assert ratios.dtype == np.float32
    assert ratios.tolist() == [13, 1, BLOCKS.index("OUT09"), 1]
    assert weights("<lora:a:lbw=0.25,0,0,0,0,0,0,0,0,0,0,0>").ratios(TEXT).tolist() == [0.25, 0.25]


def test_the_lists_for_sd1_reach_all_attention_and_the_lists_for_all_reach_every_block() -> None:
    """17 values name the blocks of SD1 that have attention; 26 name every block there is, from a real UNet."""
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    names = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    table = unet(" ".join(names))
    inside = [not name.startswith(("time_embedding", "conv_norm_out", "conv_out")) for name in names]
    np.testing.assert_array_equal(BlockWeights.listed([2.0] * 26).ratios(table) == 2, inside)
    attention = ["attentions" in name for name in names]
    assert set(BlockWeights.listed([2.0] * 17).ratios(table)[attention]) == {2}
    assert len(set(BlockWeights.listed([float(n) for n in range(17)]).ratios(table)[attention])) == 16


def test_random_values_belong_to_the_tag() -> None:
    tag = "<lora:a:lbw=R,U,R,U,R,U,R,U,R,U,R,U>"
    values = [value for block, value in zip(BLOCKS, weights(tag).values, strict=True) if block in ORDERS[12]]
    drawn = [int(hashlib.sha256(f"{n}:{tag}".encode()).hexdigest()[:16], 16) / 2**64 for n in range(12)]
    assert values == [round(2 * number - 0.5 if n % 2 else number, 3) for n, number in enumerate(drawn)]
    assert len(set(values)) > 8
    assert weights(f"x {tag} y") == weights(tag)
    assert weights(tag.replace(":a:", ":b:")) != weights(tag)


def test_random_values_lie_in_their_ranges() -> None:
    many = [weights(f"<lora:a{n}:lbw={','.join(['R'] * 13 + ['U'] * 13)}>").values for n in range(60)]
    ranged = np.array(many)
    assert 0 <= ranged[:, :13].min() < 0.05 < 0.95 < ranged[:, :13].max() <= 1
    assert -0.5 <= ranged[:, 13:].min() < -0.4 < 1.4 < ranged[:, 13:].max() <= 1.5


LAYERS = {
    "in01": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "in05": "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
    "in05p": "down_blocks.1.attentions.1.proj_in",
    "m": "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "out05": "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q",
    "out06": "up_blocks.2.attentions.0.transformer_blocks.0.attn2.to_q",
    "time": "time_embedding.linear_1",
}

RULES = {  # the ratios of the layers above, the text encoder last; without a rule they are 1
    "ATTNDEEPOFF": [1, 0, 1, 1, 0, 1, 1, 1],
    "PROJDEEPOFF": [1, 1, 0, 1, 1, 1, 1, 1],
    "ATTNDEEPON:lbw=NONE": [0, 1, 0, 0, 1, 0, 1, 0],
    "IN05-OUT05:attn:0": [1, 0, 1, 1, 0, 1, 1, 1],
    "OUT05-IN05:attn:0": [1, 0, 1, 1, 0, 1, 1, 1],
    "IN05:attn:0.5": [1, 0.5, 1, 1, 1, 1, 1, 1],
    "IN05 M00::0.5": [1, 0.5, 0.5, 0.5, 1, 1, 1, 1],
    "IN01-IN05 OUT06:attn2:2": [1, 2, 1, 1, 1, 2, 1, 1],
    "NOT IN05:attn:0": [0, 1, 1, 1, 0, 0, 1, 1],
    "NOT IN01-OUT11::0": [1, 1, 1, 1, 1, 1, 0, 0],
    ":NOT attn:0": [1, 1, 0, 0, 1, 1, 0, 0],
    ":NOT attn1 proj:0": [1, 0, 1, 0, 1, 0, 0, 0],
    "::0.5": [0.5] * 8,
    ":attn1_to_q attn2_to_k:-1": [-1, -1, 1, 1, -1, 1, 1, 1],
    "BASE::0": [1, 1, 1, 1, 1, 1, 1, 0],
    "BASE:fc1:0.25": [1, 1, 1, 1, 1, 1, 1, 0.25],
    "M00::2,::3,IN05:attn:4": [3, 4, 3, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize(("rule", "expected"), RULES.items())
def test_an_element_rule(rule: str, expected: list[float]) -> None:
    found = weights(f"<lora:a:0.5:lbwe={rule}>")
    text = found.ratios(SlotTable("text_encoder", TEXT.slots))
    assert [*found.ratios(unet(" ".join(LAYERS.values()))), *text] == expected


def test_arguments_after_a_rule_keep_their_meaning() -> None:
    multiplier = parse("<lora:a:lbwe=IN05:attn:0,M00::2:te=0.5:unet=0.7:start=2>").calls[0].multiplier
    assert (multiplier.text, multiplier.unet) == (0.5, 0.7)
    assert multiplier.blocks is not None
    assert [rule.ratio for rule in multiplier.blocks.rules] == [0, 2]
    after = parse("<lora:a:lbwe=ATTNDEEPOFF:0.5>").calls[0].multiplier
    assert (after.text, after.blocks) == (0.5, weights("<lora:a:lbwe=ATTNDEEPOFF>"))


def test_rules_are_bounded() -> None:
    tag = "<lora:a:lbwe=" + ",".join(["::0"] * (MAX_RULES + 1)) + ">"
    with pytest.raises(PromptError, match="more than 100 element rules") as caught:
        parse(tag)
    assert tag[caught.value.at :] == "::0>"


def test_a_tag_without_blocks_has_none() -> None:
    assert parse("<lora:a:0.5:0.7>").calls[0].multiplier.blocks is None
    assert all(BLOCKS.index(a) < BLOCKS.index(b) for order in ORDERS.values() for a, b in pairwise(order))
