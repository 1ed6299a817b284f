"""Files that diffusers and PEFT wrote, fitted to small real models: each slot's change is theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import lora_edge
from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.errors import (
    AdapterFileDamaged,
    AdapterNotFound,
)
from lora_edge.slots import Slot, SlotTable

Delta = Callable[[Adapter, str, Slot], Any]
WEIGHTS = "pytorch_lora_weights.safetensors"
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "conv"]
TEXT_TARGETS = ["q_proj", "out_proj", "fc1"]
EXACT = 1e-12  # both sides are products of the same numbers in float64

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_K2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV1 = "down_blocks.0.resnets.0.conv1"
PROJ_IN = "mid_block.attentions.0.proj_in"
FC1 = "text_model.encoder.layers.0.mlp.fc1"


def config(targets: list[str], **more: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False, **more})


def check(adapter: Adapter, component: str, table: SlotTable, model: torch.nn.Module, delta: Delta) -> int:
    """Every slot's change is what PEFT computes in the model; how many slots change."""
    changed = 0
    layers = {
        f"text_model.{name}".replace("text_model.text_model.", "text_model.") if component != "unet" else name: module
        for name, module in model.double().named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for slot in table:
        if slot.name in layers:
            (name,) = layers[slot.name].active_adapters
            wanted = layers[slot.name].get_delta_weight(name).detach().numpy()
            np.testing.assert_allclose(delta(adapter, component, slot), wanted, rtol=EXACT, atol=EXACT)
            changed += 1
        else:
            assert slot.name not in adapter.components[component].slots
    return changed


@pytest.fixture
def trained(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> tuple[Any, Any]:
    """Both models with random adapters in them."""
    unet.add_adapter(config(UNET_TARGETS))
    text_encoder.add_adapter(config(TEXT_TARGETS))
    return unet, text_encoder


def saved(folder: Path, models: tuple[Any, Any], metadata: bool) -> Path:
    """What diffusers' training scripts write."""
    unet, text = models
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=get_peft_model_state_dict(text),
        **(_collate_lora_metadata({"unet": unet, "text_encoder": text}) if metadata else {}),
    )
    return folder / WEIGHTS


def test_diffusers_file_with_metadata(
    trained: Any, tmp_path: Path, unet_table: SlotTable, text_table: SlotTable, delta: Delta
) -> None:
    file = read_adapter(saved(tmp_path / "ink", trained, metadata=True))
    adapter = file.fit([unet_table, text_table])
    assert check(adapter, "unet", unet_table, trained[0], delta) > 100
    assert check(adapter, "text_encoder", text_table, trained[1], delta) == 6
    assert len(adapter.report.applied) == len(file.tensors.names) and not adapter.report.unused
    assert (adapter.name, adapter.kinds) == ("pytorch_lora_weights", ("lora",))
    assert read_adapter(tmp_path / "ink").name == "ink"


def test_diffusers_file_without_metadata_has_scale_1(
    trained: Any, tmp_path: Path, unet_table: SlotTable, text_table: SlotTable, delta: Delta
) -> None:
    adapter = read_adapter(saved(tmp_path, trained, metadata=False)).fit([unet_table, text_table])
    for model, table in zip(trained, (unet_table, text_table), strict=True):
        for module in model.modules():
            if hasattr(module, "get_delta_weight"):
                module.scaling["default"] = 1.0
        check(adapter, table.component, table, model, delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kohya_file(
    trained: Any, tmp_path: Path, unet_table: SlotTable, text_table: SlotTable, delta: Delta, dtype: torch.dtype
) -> None:
    """diffusers writes it, diffusers reads it back into fresh models, and those are compared."""
    state = convert_state_dict_to_kohya(load_file(saved(tmp_path, trained, metadata=False)))
    state = {name: (torch.tensor(3.0) if name.endswith(".alpha") else tensor) for name, tensor in state.items()}
    path = tmp_path / "kohya.safetensors"
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, path)
    adapter = read_adapter(path).fit([unet_table, text_table])
    assert len(adapter.report.applied) == len(state)

    back, alphas = StableDiffusionPipeline.lora_state_dict(str(path), unet_config=trained[0].config)
    unet = UNet2DConditionModel.from_config(trained[0].config)
    StableDiffusionPipeline.load_lora_into_unet(back, alphas, unet, adapter_name="back")
    assert check(adapter, "unet", unet_table, unet, delta) > 100
    text = CLIPTextModel(trained[1].config)
    StableDiffusionPipeline.load_lora_into_text_encoder(back, alphas, text, prefix="text_encoder", adapter_name="back")
    assert check(adapter, "text_encoder", text_table, text, delta) == 6


def test_file_with_two_namings(
    trained: Any, tmp_path: Path, unet_table: SlotTable, text_table: SlotTable, delta: Delta
) -> None:
    """diffusers' own converter renames the attention only; every key is resolved on its own."""
    state = convert_state_dict_to_diffusers(load_file(saved(tmp_path, trained, metadata=False)))
    assert any("lora_A" in name for name in state) and any(".lora_linear_layer." in name for name in state)
    path = tmp_path / "mixed.safetensors"
    save_file(state, path, metadata={})
    adapter = read_adapter(path).fit([unet_table, text_table])
    reference = read_adapter(tmp_path / WEIGHTS).fit([unet_table, text_table])
    for table in (unet_table, text_table):
        for slot in table:
            np.testing.assert_array_equal(
                delta(adapter, table.component, slot), delta(reference, table.component, slot)
            )


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_oldest_diffusers_file(prefix: str, unet: Any, tmp_path: Path, unet_table: SlotTable, delta: Delta) -> None:
    rng = torch.Generator().manual_seed(0)
    state = {}
    for slot in unet_table:
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            if slot.name.endswith(layer):
                name = f"{prefix}{slot.name.removesuffix(layer)}processor.{layer.removesuffix('.0')}_lora"
                state[f"{name}.down.weight"] = torch.randn(4, slot.in_features, generator=rng)
                state[f"{name}.up.weight"] = torch.randn(slot.out_features, 4, generator=rng)
    save_file(state, tmp_path / "old.safetensors")
    adapter = read_adapter(tmp_path / "old.safetensors").fit([unet_table])
    unet_keys = {name if prefix else f"unet.{name}": tensor for name, tensor in state.items()}
    StableDiffusionPipeline.load_lora_into_unet(unet_keys, None, unet, adapter_name="back")
    assert check(adapter, "unet", unet_table, unet, delta) == 128


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"lora_alpha": 3, "use_rslora": True},
        {"rank_pattern": {"conv1": 2, "attn1.to_q": 3}, "alpha_pattern": {"to_q": 5, "down_blocks.0.*": 7}},
        {
            "alpha_pattern": {"mid_block.attentions.0.proj_in": 1.5, "^up_blocks.1.resnets.0.conv1": 9},
            "use_rslora": True,
        },
        {"lora_alpha": 0},
    ],
    ids=["alpha", "rslora", "patterns", "patterns and rslora", "alpha 0"],
)
def test_peft_folder(more: dict[str, Any], unet: Any, tmp_path: Path, unet_table: SlotTable, delta: Delta) -> None:
    model = get_peft_model(unet, config(UNET_TARGETS, **more))
    model.save_pretrained(tmp_path / "ink.v2")  # which sorts the patterns, and the first that matches counts
    model = PeftModel.from_pretrained(UNet2DConditionModel.from_config(unet.config), tmp_path / "ink.v2")
    adapter = read_adapter(tmp_path / "ink.v2").fit([unet_table])
    assert adapter.name == "ink.v2"
    assert check(adapter, "unet", unet_table, model.base_model.model, delta) > 100
    assert bool(adapter.report.warnings) == (more.get("lora_alpha") == 0)


def test_peft_file_with_the_adapter_name_kept(unet: Any, tmp_path: Path, unet_table: SlotTable, delta: Delta) -> None:
    model = get_peft_model(unet, config(["to_q"], lora_alpha=4))
    state = {name: tensor for name, tensor in model.state_dict().items() if ".default." in name}
    assert all(name.startswith("base_model.model.") for name in state)
    save_file(state, tmp_path / "f.safetensors")
    adapter = read_adapter(tmp_path / "f.safetensors").fit([unet_table])
    assert check(adapter, "unet", unet_table, model.base_model.model, delta) == 32


def test_ldm_names_and_dynamic_ranks(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    """Mixed ranks and alphas, as resize_lora.py leaves them; diffusers reads these wrong, so the formula is by hand."""
    made = {}
    for name, ldm, rank, alpha in [
        (TO_Q, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 2, 0.5),
        (CONV1, "lora_unet_input_blocks_1_0_in_layers_2", 4, 3.0),
        (PROJ_IN, "diffusion_model.middle_block.1.proj_in", 8, 8.0),
    ]:
        for key, array in lora(unet_table, "k", name, rank=rank, alpha=alpha).items():
            made[f"{ldm}.{key.split('.', 1)[1]}"] = array
    adapter = read_adapter(save(made)).fit([unet_table])
    for name, ldm in [(TO_Q, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q")]:
        up, down = (made[f"{ldm}.lora_{part}.weight"].astype(np.float64) for part in ("up", "down"))
        np.testing.assert_allclose(delta(adapter, "unet", unet_table.by_name[name]), 0.5 / 2 * up @ down, atol=EXACT)
    scales = {name: forms[0].scale for name, forms in adapter.components["unet"].slots.items()}
    assert scales == {TO_Q: 0.25, CONV1: 0.75, PROJ_IN: 1.0}


def test_file_in_any_order_is_the_same(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, CONV1, alpha=1)
    first = read_adapter(save(tensors, "a.safetensors")).fit([unet_table])
    second = read_adapter(save(dict(sorted(tensors.items(), reverse=True)), "b.safetensors")).fit([unet_table])
    for name in (TO_Q, CONV1):
        slot = unet_table.by_name[name]
        np.testing.assert_array_equal(delta(first, "unet", slot), delta(second, "unet", slot))


def test_the_adapter_outlives_its_file(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    path = save(lora(unet_table, "lora_unet", TO_Q))
    adapter = read_adapter(path).fit([unet_table])
    before = delta(adapter, "unet", unet_table.by_name[TO_Q])
    path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(delta(adapter, "unet", unet_table.by_name[TO_Q]), before)


# Inspection


def test_summary_is_json(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, TO_K2, rank=2, alpha=1) | lora(unet_table, "lora_unet", CONV1, rank=4)
    path = save(tensors, metadata={"ss_output_name": "ink"})
    summary = json.loads(json.dumps(lora_edge.read_adapter(str(path)).summary()))
    assert summary == {
        "name": "style",
        "path": str(path),
        "kinds": ["lora"],
        "modules": 3,
        "unread_modules": [],
        "tensors": 8,
        "ranks": [2, 4],
        "dtypes": ["F32"],
        "bytes": sum(array.nbytes for array in tensors.values()),
        "base": "custom (cross-attention width 12)",
        "metadata": {"ss_output_name": "ink"},
    }


def test_opening_reads_no_tensors(save: Any, lora: Any, unet_table: SlotTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Any, name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr("lora_edge.tensorfile.TensorFile.view", forbidden)
    assert read_adapter(save(lora(unet_table, "lora_unet", TO_Q))).summary()["modules"] == 1


def test_paths_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="does not exist"):
        read_adapter(tmp_path / "missing.safetensors")
    with pytest.raises(AdapterNotFound, match="is a folder without adapter_model.safetensors"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(AdapterFileDamaged, match="convert it first with `lora-edge convert`"):
        read_adapter(tmp_path)
