"""Kinds other than LoRA through the names of files: norms, OFT, several kinds in one file, what comes along."""

from typing import Any

import numpy as np
import pytest

from lora_edge.adapterfile import read_adapter
from lora_edge.errors import BaseNeeded
from lora_edge.slots import SlotTable

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PROJ_IN = "mid_block.attentions.0.proj_in"


@pytest.mark.parametrize("spelling", ["kohya", "ldm", "generic ldm", "diffusers", "peft"])
def test_norms_in_every_naming(spelling: str, save: Any, unet_table: SlotTable, text_table: SlotTable) -> None:
    norms = {
        "down_blocks.0.resnets.0.norm1": "input_blocks.1.0.in_layers.0",
        "down_blocks.0.attentions.0.norm": "input_blocks.1.1.norm",
        "mid_block.attentions.0.transformer_blocks.0.norm2": "middle_block.1.transformer_blocks.0.norm2",
        "conv_norm_out": "out.0",
    }
    names = {
        "kohya": lambda path, ldm: "lora_unet_" + path.replace(".", "_"),
        "ldm": lambda path, ldm: "lora_unet_" + ldm.replace(".", "_"),
        "generic ldm": lambda path, ldm: f"diffusion_model.{ldm}",
        "diffusers": lambda path, ldm: f"unet.{path}",
        "peft": lambda path, ldm: f"base_model.model.{path}",
    }[spelling]
    tensors = {}
    for path, ldm in norms.items():
        tensors |= {f"{names(path, ldm)}.{leaf}": np.ones(unet_table.norms[path]) for leaf in ("w_norm", "b_norm")}
    adapter = read_adapter(save(tensors)).fit([unet_table, text_table])
    assert set(adapter.components["unet"].norms) == set(norms) and adapter.kinds == ("norm",)


@pytest.mark.parametrize("prefix", ["oft_unet_", "lora_unet_", "lycoris_"])
def test_oft_in_every_naming(prefix: str, save: Any, unet_table: SlotTable) -> None:
    for name in ("down_blocks_0_resnets_0_conv1", "input_blocks_1_0_in_layers_2"):
        if (prefix, name[:5]) == ("lycoris_", "input"):
            continue  # the stand-alone wrapper names what it wraps
        file = read_adapter(save({f"{prefix}{name}.oft_blocks": np.zeros((2, 4, 4), np.float32)}))
        with pytest.raises(BaseNeeded, match="oft, which needs the weights of the base"):
            file.fit([unet_table])
        assert file.cost([unet_table]).full_rank == ("down_blocks.0.resnets.0.conv1 of unet",)


def test_bundled_embeddings_are_set_aside(save: Any, lora: Any, unet_table: SlotTable) -> None:
    names = ("bundle_emb.word.string_to_param.*", "bundle_emb.other.clip_l")
    tensors = lora(unet_table, "lora_unet", TO_Q) | {name: np.zeros((2, 12), np.float32) for name in names}
    file = read_adapter(save(tensors))
    assert set(file.bundled) == set(names) and len(file.modules) == 1


def test_a_stack_of_kinds_in_one_file(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, alpha=1)
    tensors |= {"lora_unet_conv_norm_out.w_norm": np.ones(8), "lora_unet_conv_in.diff_b": np.ones(8)}
    tensors |= {
        f"unet.{PROJ_IN}.lokr_w1": np.ones((2, 2)),
        f"unet.{PROJ_IN}.lokr_w2": np.ones((8, 8, 1, 1)),
    }
    file = read_adapter(save(tensors))
    adapter = file.fit([unet_table])
    assert adapter.kinds == ("bias", "lokr", "lora", "norm")
    summary = file.summary()
    assert (summary["kinds"], summary["ranks"], summary["unread_modules"]) == (
        ["bias", "lokr", "lora", "norm"],
        [2],
        [],
    )
