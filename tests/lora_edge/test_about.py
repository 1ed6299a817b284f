"""Cards and inspections: what is told of files good and bad, without a bundle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge.about import card, inspection
from lora_edge.errors import AdapterFileDamaged, AdapterNotFound
from lora_edge.library import Entry

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"


def layer(name: str, rank: int, inner: int, out: int, alpha: float | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {
        f"{name}.lora_down.weight": np.ones((rank, inner), np.float16),
        f"{name}.lora_up.weight": np.ones((out, rank), np.float16),
    }
    return made if alpha is None else {**made, f"{name}.alpha": np.float32(alpha)}


TENSORS = {
    **layer(f"{KEY}_attn2_to_k", 4, 768, 320, 2),
    **layer(f"{KEY}_attn1_to_q", 4, 320, 320, 4),
    **layer("lora_te_text_model_encoder_layers_0_mlp_fc1", 8, 768, 3072, 4),
}
METADATA = {
    "ss_output_name": "ink",
    "ss_base_model_version": "sd_v1",
    "ss_tag_frequency": json.dumps({"1_ink": {"ink": 3, "cat": 1}}),
    "modelspec.trigger_phrase": "ink style, inky",
}


@pytest.fixture
def ink(save: Any) -> Path:
    path: Path = save(TENSORS, "lora/ink.safetensors", METADATA)
    return path


def entry(path: Path) -> Entry:
    return Entry(path.stem, path)


def test_a_card(ink: Path) -> None:
    ink.with_name("ink.preview.png").write_bytes(b"")
    told = card(entry(ink))
    content = ink.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    wanted = {
        "name": "ink",
        "path": str(ink),
        "kinds": ["lora"],
        "ranks": [4, 8],
        "base": "SD1",
        "trigger_words": ["ink style", "inky"],
        "tags": [["ink", 3], ["cat", 1]],
        "preview": str(ink.with_name("ink.preview.png")),
        "hash": hashlib.sha256(data).hexdigest()[:12],
        "bytes": len(content),
        "pack": None,
        "few_steps": None,
        "fits": None,
        "warnings": [],
        "refused": None,
    }
    assert told == {**told, **wanted}
    assert json.loads(json.dumps(told)) == told


def test_notes_beside_a_file_go_before_its_metadata(ink: Path) -> None:
    user = {"activation text": "INK", "preferred weight": 0.7, "sd version": "SDXL", "notes": 5}
    ink.with_suffix(".json").write_text(json.dumps(user))
    told = card(entry(ink))
    assert told["trigger_words"] == ["INK"] and told["multiplier"] == 0.7
    assert told["base"] == "SD1"  # which its tensors show
    assert told["warnings"] == ["'notes' beside it is of type int and was left out"]


def test_what_the_tensors_do_not_show_the_user_may_know(save: Any) -> None:
    path = save(layer("lora_unet_new_block", 2, 7, 7), "odd.safetensors")
    path.with_suffix(".civitai.info").write_text('{"baseModel": "Pony"}')
    assert card(entry(path))["base"] == "Pony"


def test_contradictions_and_few_steps_are_said(save: Any) -> None:
    path = save(TENSORS, "my-lcm.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    told = card(entry(path))
    assert told["few_steps"] == "my-lcm is an LCM adapter: use --sampler lcm --steps 4 --guidance 1"
    assert "its metadata says SDXL" in told["warnings"][0] and told["base"] == "SD1"


def test_every_card_has_the_same_keys(ink: Path, save: Any) -> None:
    (ink.parent / "page.safetensors").write_bytes(b"<html>")
    (ink.parent / "old.pt").write_bytes(b"\x80\x02")
    model = save({"conv_in.weight": np.ones(3, np.float32)}, "lora/model.safetensors")
    bad = [ink.parent / "page.safetensors", ink.parent / "old.pt", model, ink.parent / "gone.safetensors"]
    cards = [card(entry(path)) for path in (ink, *bad)]
    assert len({tuple(told) for told in cards}) == 1
    reasons = [told["refused"] for told in cards]
    assert reasons[0] is None
    for reason, part in zip(
        reasons[1:], ("is a web page", "lora-edge convert", "whole model", "does not exist"), strict=True
    ):
        assert part in reason


def test_a_name_that_no_tag_can_say(save: Any) -> None:
    assert "no tag in a prompt" in card(entry(save(TENSORS, "a:b.safetensors")))["warnings"][0]


def test_a_pack_is_told_by_its_description(save: Any) -> None:
    head = {
        "format": 1, "abi": 1, "dtype": "fp16",
        "bundle": {"fingerprint": "f" * 64, "family": "sd1", "name": "sd15"},
        "adapter": {"name": "ink", "kinds": ["lora"]},
        "components": {"unet": {"prefix": "", "slots": [{"name": "conv_in", "rank": 4, "scales": [[4, 1.0]]}]}},
    }  # fmt: skip
    port = {"lora.conv_in.down": np.ones((36, 4), np.float16)}
    path = save(port, "ink.pack.safetensors", {"lora_edge_pack": json.dumps(head)})
    told = inspection(path)
    assert told["pack"]["name"] == "ink" and told["pack"]["bundle"] == "sd15"
    assert (told["kinds"], told["ranks"], told["base"]) == (["lora"], [4], "bundle sd15")
    broken = save(port, "bad.pack.safetensors", {"lora_edge_pack": "{}"})
    assert "describes itself wrongly" in card(entry(broken))["refused"]


def test_an_inspection(ink: Path) -> None:
    told = inspection(ink)
    assert told["autov2"] == hashlib.sha256(ink.read_bytes()).hexdigest()[:10]
    assert told["modules"] == 3 and told["tensors"] == 9
    assert told["modules_by_kind"] == {"lora": 3}
    assert told["modules_by_rank"] == {"4": 2, "8": 1}
    assert told["modules_by_alpha"] == {"4": 2, "2": 1}
    assert told["modules_by_component"] == {"unet": 2, "text_encoder": 1}
    assert told["tensors_by_dtype"] == {"F16": 6, "F32": 3}
    assert told["training"] == {"output name": "ink", "base version": "sd_v1"}
    assert told["metadata"] == METADATA and told["unread_modules"] == {}
    json.dumps(told)


def test_modules_that_no_kind_reads_are_listed(save: Any) -> None:
    path = save({**TENSORS, f"{KEY}_attn1_to_k.lora_what": np.ones(2, np.float32)})
    told = inspection(path)
    assert list(told["unread_modules"]) == [f"{KEY}_attn1_to_k"]
    assert "lora_what" in told["unread_modules"][f"{KEY}_attn1_to_k"]


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("lora_unet_conv_in", "unet"),
        ("unet.conv_in", "unet"),
        ("diffusion_model.out.2", "unet"),
        ("base_model.model.down_blocks.0.resnets.0.conv1", "unet"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("lora_te2_text_projection", "text_encoder_2"),
        ("text_encoder_2.text_projection", "text_encoder_2"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "transformer"),
        ("lycoris_conv_in", "unnamed"),
    ],
)
def test_components_by_name(name: str, component: str, save: Any) -> None:
    assert inspection(save(layer(name, 2, 3, 3)))["modules_by_component"] == {component: 1}


def test_alphas_that_are_no_numbers_are_told(save: Any) -> None:
    assert inspection(save(layer("lora_unet_conv_in", 2, 3, 3, np.nan)))["modules_by_alpha"] == {"nan": 1}


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        inspection(tmp_path / "gone.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"<html>")
    with pytest.raises(AdapterFileDamaged, match="is a web page"):
        inspection(tmp_path / "x.safetensors")


def test_a_folder(save: Any) -> None:
    weights = save(layer("base_model.model.conv_in", 2, 3, 3), "fog/adapter_model.safetensors")
    told = inspection(weights.parent)
    assert told["name"] == "fog" and told["bytes"] == weights.stat().st_size
