"""Spelling against names written by hand from real files, and against diffusers' own converters."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from lora_edge.dialects import DIALECTS, Place, spell
from lora_edge.dialects.ldm import ldm_path
from lora_edge.slots import Slot, SlotTable

# One row for each line of the map, for Stable Diffusion 1.5.
LDM = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.1.time_emb_proj": "input_blocks.2.0.emb_layers.1",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": "input_blocks.5.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.2.downsamplers.0.conv": "input_blocks.9.0.op",
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.2.conv_shortcut": "output_blocks.2.0.skip_connection",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.resnets.0.conv1": "output_blocks.3.0.in_layers.2",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": "output_blocks.5.1.transformer_blocks.0.ff.net.0.proj",  # noqa: E501
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0": "output_blocks.11.1.transformer_blocks.0.attn1.to_out.0",  # noqa: E501
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_out": "out.2",
}  # fmt: skip

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT_Q = "text_model.encoder.layers.0.self_attn.q_proj"
TEXT_OUT = "text_model.encoder.layers.1.self_attn.out_proj"
FC1 = "text_model.encoder.layers.1.mlp.fc1"

# Module name in a file -> component, slot, dialect.
NAMES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": ("unet", TO_Q, "kohya"),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0": ("unet", TO_OUT, "kohya"),
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": ("unet", TO_Q, "kohya-ldm"),
    "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0": ("unet", TO_OUT, "kohya-ldm"),
    "lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0": ("unet", TO_OUT, "kohya"),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": ("text_encoder", TEXT_Q, "kohya"),
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", FC1, "kohya"),
    "lora_te_encoder_layers_1_mlp_fc1": ("text_encoder", FC1, "kohya"),
    f"unet.{TO_Q}": ("unet", TO_Q, "diffusers"),
    f"text_encoder.{FC1}": ("text_encoder", FC1, "diffusers"),
    "text_encoder.encoder.layers.1.mlp.fc1": ("text_encoder", FC1, "diffusers"),
    f"unet.{TO_Q.removesuffix('to_q')}processor.to_q_lora": ("unet", TO_Q, "diffusers-attn-procs"),
    f"{TO_OUT.removesuffix('to_out.0')}processor.to_out_lora": ("unet", TO_OUT, "diffusers-attn-procs"),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora": ("text_encoder", TEXT_Q, "diffusers-attn-procs"),
    "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora":
        ("text_encoder", TEXT_OUT, "diffusers-attn-procs"),
    f"base_model.model.{TO_Q}": ("unet", TO_Q, "peft"),
    f"base_model.model.unet.{TO_Q}": ("unet", TO_Q, "peft"),
    "base_model.model.encoder.layers.1.mlp.fc1": ("text_encoder", FC1, "peft"),
    TO_Q: ("unet", TO_Q, "peft"),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": ("unet", TO_Q, "ldm"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "meant"), NAMES.items())
def test_names_of_real_files(
    name: str, meant: tuple[str, str, str], sd15_table: SlotTable, text_table: SlotTable
) -> None:
    component, path, dialect = meant
    found = spell([sd15_table, text_table])[name]
    assert found.places == (Place(component, path),)
    assert found.dialect == dialect


def test_every_dialect_has_an_example() -> None:
    assert {dialect for _, _, dialect in NAMES.values()} == set(DIALECTS)


@pytest.mark.parametrize(("path", "name"), LDM.items())
def test_ldm_names_written_by_hand(path: str, name: str, sd15_table: SlotTable) -> None:
    assert ldm_path(sd15_table, path) == name
    found = spell([sd15_table])
    assert found[f"lora_unet_{name.replace('.', '_')}"].places == (Place("unet", path),)
    assert found[f"diffusion_model.{name}"].places == (Place("unet", path),)


SHAPES = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "three levels": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
    },
    "one layer a block": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "three layers a block": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusers_turns_every_ldm_name_back(shape: str, table_of: Callable[[torch.nn.Module], SlotTable]) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES[shape])
    table = table_of(unet)
    keys = {}
    for name in unet.state_dict():
        path, _, leaf = name.rpartition(".")
        keys[f"model.diffusion_model.{ldm_path(table, path)}.{leaf}"] = name
    assert len(keys) == len(unet.state_dict()), "two layers share a name"
    turned = convert_ldm_unet_checkpoint(dict(keys), dict(unet.config))
    assert turned == {name: name for name in unet.state_dict()}


def test_sd15_has_as_many_slots_as_people_know(sd15_table: SlotTable) -> None:
    """kohya's default LoRA of SD1 has 192 UNet modules, all in the attention blocks."""
    assert len(sd15_table) == 282
    assert sum(".attentions." in slot.name for slot in sd15_table) == 192


def test_diffusers_reads_the_oldest_names_alike(sd15_table: SlotTable) -> None:
    for slot in sd15_table:
        if slot.name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            names = [name for name in DIALECTS["diffusers-attn-procs"](sd15_table, slot.name) if "processor" in name]
            assert len(names) == 2
            for name in names:
                turned = convert_unet_state_dict_to_peft({f"{name}.down.weight": 0})
                prefix = "unet." if name.startswith("unet.") else ""
                assert list(turned) == [f"{prefix}{slot.name}.lora_A.weight"]


def test_names_are_unambiguous_within_sd15(sd15_table: SlotTable, text_table: SlotTable) -> None:
    assert all(len(found.places) == 1 for found in spell([sd15_table, text_table]).values())


def test_a_name_without_its_component_keeps_all_its_meanings(text_table: SlotTable) -> None:
    second = SlotTable("text_encoder_2", text_table.slots)
    found = spell([text_table, second])
    assert found[f"base_model.model.{FC1}"].places == (Place("text_encoder", FC1), Place("text_encoder_2", FC1))
    assert found[f"lora_te2_{FC1.replace('.', '_')}"].places == (Place("text_encoder_2", FC1),)
    assert found[f"text_encoder_2.{FC1}"].places == (Place("text_encoder_2", FC1),)


def test_layers_that_flatten_alike_are_both_kept() -> None:
    table = SlotTable("unet", (Slot("a.b_c", 1, 1), Slot("a_b.c", 1, 1)))
    assert spell([table])["lora_unet_a_b_c"].places == (Place("unet", "a.b_c"), Place("unet", "a_b.c"))


def test_without_facts_there_are_no_ldm_block_names(sd15_table: SlotTable) -> None:
    bare = SlotTable("unet", sd15_table.slots)
    assert ldm_path(bare, "down_blocks.0.resnets.0.conv1") is None
    assert "lora_unet_input_blocks_1_1_proj_in" not in spell([bare])


def test_norms_are_spelled_too(sd15_table: SlotTable) -> None:
    found = spell([sd15_table])
    assert found["lora_unet_down_blocks_0_resnets_0_norm1"].places == (Place("unet", "down_blocks.0.resnets.0.norm1"),)
    assert found["lora_unet_input_blocks_1_0_in_layers_0"].places == (Place("unet", "down_blocks.0.resnets.0.norm1"),)


@pytest.mark.parametrize("name", ["", "unet", "lora_unet_", "vae.decoder.conv_in", "lora_te3_encoder_block_0"])
def test_other_names_mean_nothing(name: str, sd15_table: SlotTable, text_table: SlotTable) -> None:
    assert name not in spell([sd15_table, text_table])


def test_the_spelling_of_a_bundle_is_made_once(unet_table: SlotTable, text_table: SlotTable) -> None:
    tables = [unet_table, text_table]
    assert spell(tables) is spell(tuple(tables))
    assert spell(tables) is not spell([unet_table])
    fewer = SlotTable("unet", unet_table.slots[:-1], unet_table.norms, unet_table.facts)
    assert spell([fewer]) is not spell([unet_table]) and len(spell([fewer])) < len(spell([unet_table]))
