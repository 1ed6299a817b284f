"""Checkpoints without torch: the same slots that the exporter finds in the modules, the same weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from lora_edge.errors import CheckpointError
from lora_edge.export.checkpoint import Checkpoint as ExportCheckpoint
from lora_edge.export.slotted import slot_table
from lora_edge.tools.checkpoint import Checkpoint

UNET = "unet/diffusion_pytorch_model"


def test_slots_are_those_of_the_exporter(tiny_model: Path) -> None:
    ours = {table.component: table for table in Checkpoint.open(tiny_model).tables}
    for part in ExportCheckpoint.open(tiny_model).parts:
        recipe = part.recipe
        size = 2 ** len(part.config.get("block_out_channels", ()))
        theirs = slot_table(recipe, part.load(), part.config, recipe.example(part.config, 1, size))
        if not len(theirs):
            continue
        table = ours.pop(recipe.component)
        assert {slot.name: (slot.weight_shape, slot.has_bias) for slot in table} == {
            slot.name: (slot.weight_shape, slot.has_bias) for slot in theirs
        }
        assert table.norms == theirs.norms and table.facts == theirs.facts
    assert not ours


def test_weights_are_those_of_the_modules(tiny_model: Path, base: Checkpoint) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    text = CLIPTextModel.from_pretrained(tiny_model / "text_encoder")
    for component, module in (("unet", unet), ("text_encoder", text)):
        parameters = {name.removeprefix("text_model."): value for name, value in module.named_parameters()}
        (table,) = (table for table in base.tables if table.component == component)
        for slot in table:
            own = slot.name.removeprefix("text_model.")
            assert np.array_equal(base.weight(component, slot.name), parameters[f"{own}.weight"].detach().numpy())
            bias = base.bias(component, slot.name)
            assert (bias is not None) == slot.has_bias == (f"{own}.bias" in parameters)
            assert bias is None or np.array_equal(bias, parameters[f"{own}.bias"].detach().numpy())


def test_shards_variants_and_old_names(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    unet.to(torch.float16).save_pretrained(folder / "unet", variant="fp16")
    (folder / "text_encoder").mkdir()
    shutil.copy(tiny_model / "text_encoder" / "config.json", folder / "text_encoder")
    tensors = load_file(tiny_model / "text_encoder" / "model.safetensors")
    old = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in tensors.items()}
    save_file(old, folder / "text_encoder" / "model.safetensors")
    one, other = Checkpoint.open(folder), Checkpoint.open(tiny_model)
    assert [len(weights.files) > 1 for weights in one.variants["unet"]] == [True, False]
    assert {(slot, table.component) for table in one.tables for slot in table} == {
        (slot, table.component) for table in other.tables for slot in table
    }
    for table in one.tables:
        for slot in table:
            assert np.array_equal(one.weight(table.component, slot.name), other.weight(table.component, slot.name))


def damaged(folder: Path, what: str) -> None:
    weights = folder / f"{UNET}.safetensors"
    index = folder / f"{UNET}.safetensors.index.json"
    if what == "nothing":
        shutil.rmtree(folder)
    elif what == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif what == "torn":
        weights.write_bytes(weights.read_bytes()[:-3])
    elif what == "pickled":
        weights.rename(folder / f"{UNET}.bin")
    elif what == "lone shard":
        weights.rename(folder / f"{UNET}-00001-of-00002.safetensors")
    elif what == "outside":
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    elif what == "lost shard":
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": "gone.safetensors"}}))
    elif what == "no map":
        index.write_text(json.dumps({"weight_map": ["gone.safetensors"]}))
    elif what == "config":
        (folder / "unet" / "config.json").write_text("[")


@pytest.mark.parametrize(
    ("what", "sentence"),
    {
        "nothing": "is not a folder",
        "empty": "no model in diffusers layout",
        "torn": "is truncated",
        "pickled": "its weights are pickled",
        "lone shard": "one shard of several",
        "outside": "names files outside its own folder",
        "lost shard": "names gone.safetensors, which is missing",
        "no map": "has no weight_map",
        "config": "cannot be read as JSON",
    }.items(),
)
def test_refusals(tiny_model: Path, tmp_path: Path, what: str, sentence: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damaged(folder, what)
    with pytest.raises(CheckpointError, match=sentence):
        Checkpoint.open(folder)


def test_numbers_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(tiny_model / f"{UNET}.safetensors")
    tensors["conv_in.weight"][0, 0, 0, 0] = np.nan
    save_file(tensors, tmp_path / "model" / f"{UNET}.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite in conv_in\.weight"):
        Checkpoint.open(tmp_path / "model").weight("unet", "conv_in")
