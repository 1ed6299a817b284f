"""Two checkpoints -> an adapter: best approximations, names, and nothing lost silently."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.errors import AdapterValueError, CheckpointError, RequestError
from lora_edge.forms import Bias, LowRank
from lora_edge.slots import Slot
from lora_edge.tools.checkpoint import Checkpoint
from lora_edge.tools.extract import extract
from lora_edge.tools.svd import Budget

UNET = ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in", "time_embedding.linear_1")
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc2")


def lanes(slot: Slot, rank: int, seed: int) -> Any:
    """A random change of so many lanes, in the weight's shape."""
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((slot.out_features, rank)) @ rng.standard_normal((rank, slot.patch))
    return (product / np.sqrt(slot.patch)).reshape(slot.weight_shape)


def low_rank(base: Checkpoint, rank: int) -> dict[str, dict[str, Any]]:
    slots = {(table.component, slot.name): slot for table in base.tables for slot in table}
    return {
        component: {f"{name}.weight": lanes(slots[component, name], rank, seed) for seed, name in enumerate(names)}
        for component, names in (("unet", UNET), ("text_encoder", TEXT))
    }


def dense(adapter: Adapter, component: str, slot: Slot) -> Any:
    """What the file adds to a weight, from its lanes, float64."""
    (form,) = (form for form in adapter.components[component].slots[slot.name] if isinstance(form, LowRank))
    return form.scale * (form.down.astype(np.float64) @ form.up).T.reshape(slot.weight_shape)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_best_approximations(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path, rank: int) -> None:
    """At the change's own rank it comes back; below, the error is that of torch's truncation."""
    tuned = Checkpoint.open(retuned(low_rank(base, 3)))
    made = extract(base, tuned, tmp_path / "out.safetensors", Budget(rank), dtype="fp32")
    adapter = read_adapter(made.path).fit(base.tables)
    told = {layer.name: layer for layer in made.layers}
    assert set(told) == {f"unet.{name}" for name in UNET} | {f"text_encoder.{name}" for name in TEXT}
    for table in base.tables:
        assert set(adapter.components[table.component].slots) == {*UNET, *TEXT} & set(table.by_name)
        for name in adapter.components[table.component].slots:
            slot = table.by_name[name]
            change = tuned.weight(table.component, name).astype(np.float64) - base.weight(table.component, name)
            values = torch.linalg.svdvals(torch.from_numpy(change.reshape(len(change), -1)))
            squares = (values**2).numpy()
            error = np.square(dense(adapter, table.component, slot) - change).sum()
            assert error == pytest.approx(squares[rank:].sum(), rel=1e-3, abs=1e-9 * squares.sum())
            layer = told[f"{table.component}.{name}"]
            assert layer.kept == pytest.approx(squares[:rank].sum(), rel=1e-9) and layer.rank == rank
            assert layer.share == pytest.approx(squares[:rank].sum() / squares.sum(), rel=1e-9)
    total = sum(layer.total for layer in made.layers)
    assert made.share == pytest.approx(sum(layer.kept for layer in made.layers) / total)
    assert (made.share > 1 - 1e-9) == (rank >= 3) and not made.warnings


def test_names_alpha_dtype_and_metadata(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    tuned = Checkpoint.open(retuned(low_rank(base, 3)))
    out = tmp_path / "mine.safetensors"
    extract(base, tuned, out, Budget(4, conv_rank=2))
    tensors = load_file(out)
    module = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert {name.removeprefix(module) for name in tensors if name.startswith(module)} == {
        ".lora_down.weight", ".lora_up.weight", ".alpha",
    }  # fmt: skip
    assert tensors["lora_unet_conv_in.lora_down.weight"].shape == (2, 4, 3, 3)
    assert tensors["lora_unet_conv_in.lora_up.weight"].shape == (32, 2, 1, 1)
    assert tensors["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape == (4, 32, 1, 1)
    assert tensors["lora_unet_time_embedding_linear_1.lora_down.weight"].shape == (4, 32)
    assert {name.split("_")[1] for name in tensors} == {"unet", "te"}
    for name, array in tensors.items():
        assert array.dtype == (np.float32 if name.endswith(".alpha") else np.float16)
        if name.endswith(".alpha"):
            assert array.shape == () and array == tensors[name.replace("alpha", "lora_down.weight")].shape[0]
    with safe_open(out, "np") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "Dynamic" and metadata["ss_output_name"] == "mine"
    assert metadata["ss_network_module"] == "networks.lora" and "modelspec.architecture" not in metadata
    extract(base, tuned, tmp_path / "even.safetensors", Budget(3))
    with safe_open(tmp_path / "even.safetensors", "np") as file:
        assert (file.metadata()["ss_network_dim"], file.metadata()["ss_network_alpha"]) == ("3", "3.0")


def test_diffusers_reads_it(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    """Loaded and fused by diffusers, the adapter makes the one checkpoint of the other."""
    changes = low_rank(base, 2)
    for name in ("conv_in.weight", "time_embedding.linear_1.weight"):  # which its kohya reader does not know
        del changes["unet"][name]
    out = "text_model.encoder.layers.0.self_attn.out_proj"  # without one it takes text attention for something else
    changes["text_encoder"][f"{out}.weight"] = lanes(base.tables[1].by_name[out], 2, 9)
    folder = retuned(changes)
    made = extract(base, Checkpoint.open(folder), tmp_path / "out.safetensors", Budget(2), dtype="fp32")
    pipe = StableDiffusionPipeline.from_pretrained(base.folder)
    pipe.load_lora_weights(made.path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    tuned = StableDiffusionPipeline.from_pretrained(folder)
    for component in ("unet", "text_encoder"):
        ours, theirs = (getattr(each, component).state_dict() for each in (pipe, tuned))
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-6)


def test_the_family_is_that_of_the_base(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    folders = [retuned({}, "base"), retuned(low_rank(base, 1), "tuned")]
    for folder in folders:
        config = folder / "unet" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 1024}))
    scheduler = folders[0] / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    made = extract(*map(Checkpoint.open, folders), tmp_path / "out.safetensors", Budget(1))
    metadata = read_adapter(made.path).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == ("sd_v2_768_v", "True")


def test_two_text_encoders(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    """SDXL's names: the first encoder is `lora_te1`, the second has a projection."""
    folders = []
    for seed, name in enumerate(("base", "tuned")):
        folders.append(retuned(low_rank(base, 2) if seed else {}, name))
        torch.manual_seed(seed)
        config = CLIPTextConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                num_attention_heads=2, max_position_embeddings=8, projection_dim=12)  # fmt: skip
        CLIPTextModelWithProjection(config).save_pretrained(folders[-1] / "text_encoder_2")
    opened = [Checkpoint.open(folder) for folder in folders]
    made = extract(*opened, tmp_path / "out.safetensors", Budget(4), dtype="fp32")
    names = set(load_file(made.path))
    assert "lora_te1_text_model_encoder_layers_1_mlp_fc2.alpha" in names and "lora_te2_text_projection.alpha" in names
    assert not any(name.startswith("lora_te_") for name in names) and "embedding" in made.warnings[0]
    fitted = read_adapter(made.path).fit(opened[0].tables)
    assert set(fitted.components) == {"unet", "text_encoder", "text_encoder_2"}


def test_biases_and_norms(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    changes = {
        "unet": {
            "conv_in.weight": lanes(base.tables[0].by_name["conv_in"], 1, 0),
            "conv_in.bias": rng.standard_normal(32),
            "time_embedding.linear_1.bias": rng.standard_normal(128),
            "conv_norm_out.weight": rng.standard_normal(32),
        },
        "text_encoder": {"text_model.final_layer_norm.bias": rng.standard_normal(64)},
    }
    tuned = Checkpoint.open(retuned(changes))
    made = extract(base, tuned, tmp_path / "out.safetensors", Budget(2), dtype="fp32")
    assert made.others == 4 and not made.warnings
    fitted = read_adapter(made.path).fit(base.tables).components
    for name in ("conv_in", "time_embedding.linear_1"):
        (bias,) = (form for form in fitted["unet"].slots[name] if isinstance(form, Bias))
        np.testing.assert_allclose(bias.delta, changes["unet"][f"{name}.bias"], atol=1e-6)
    assert len(fitted["unet"].slots["conv_in"]) == 2 and len(fitted["unet"].slots["time_embedding.linear_1"]) == 1
    norm = fitted["unet"].norms["conv_norm_out"]
    np.testing.assert_allclose(norm.weight, changes["unet"]["conv_norm_out.weight"], atol=1e-6)
    assert norm.bias is not None and not norm.bias.any()
    np.testing.assert_allclose(
        fitted["text_encoder"].norms["text_model.final_layer_norm"].bias,
        changes["text_encoder"]["text_model.final_layer_norm.bias"],
        atol=1e-6,
    )

    plain = extract(base, tuned, tmp_path / "plain.safetensors", Budget(2), norms=False)
    assert len(load_file(plain.path)) == 3 and plain.others == 0
    (warning,) = plain.warnings
    assert warning.startswith("left out, as biases and norms were not asked for: conv_in.bias of unet, ")
    assert warning.endswith(" and 1 more")


def test_what_no_adapter_carries_is_told(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    embedding = "embeddings.token_embedding.weight"
    folder = retuned({**low_rank(base, 1), "text_encoder": {f"text_model.{embedding}": np.ones((514, 64))}})
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: array + 1 for name, array in load_file(vae).items()}, vae)
    made = extract(base, Checkpoint.open(folder), tmp_path / "out.safetensors", Budget(1))
    (warning,) = made.warnings
    assert warning == f"left out, as no adapter carries it: text_model.{embedding} of text_encoder, the vae"
    shutil.rmtree(folder / "text_encoder")
    vae.rename(vae.with_suffix(".bin"))
    made = extract(base, Checkpoint.open(folder), tmp_path / "unet.safetensors", Budget(1))
    assert set(made.warnings) == {
        "left out, as only one checkpoint has it: text_encoder",
        "left out, as no adapter carries it: the vae",
    }


def test_rounding_is_no_difference(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    half = retuned({"unet": {"conv_in.weight": lanes(base.tables[0].by_name["conv_in"], 2, 0)}}, dtype=np.float16)
    made = extract(base, Checkpoint.open(half), tmp_path / "out.safetensors", Budget(4))
    assert [layer.name for layer in made.layers] == ["unet.conv_in"] and made.others == 0


def test_energy_gives_each_layer_its_own_rank(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    tuned = Checkpoint.open(retuned(low_rank(base, 8)))
    made = extract(base, tuned, tmp_path / "out.safetensors", Budget(32, energy=0.7))
    assert len(made.ranks) > 1 and max(made.ranks) < 8
    assert all(layer.share >= 0.7 for layer in made.layers)
    fitted = read_adapter(made.path).fit(base.tables)
    assert {form.scale for part in fitted.components.values() for forms in part.slots.values() for form in forms} == {
        1.0
    }


def test_refusals(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "out.safetensors"
    folder = retuned({"unet": {"conv_in.weight": 1e6 * np.ones((32, 4, 3, 3))}})
    tuned = Checkpoint.open(folder)
    with pytest.raises(RequestError, match="do not differ in anything that an adapter carries"):
        extract(base, Checkpoint.open(tiny_model), out, Budget(1))
    with pytest.raises(AdapterValueError, match="numbers that do not fit F16; choose a wider dtype"):
        extract(base, Checkpoint.open(retuned({"unet": {"conv_in.bias": 1e6 * np.ones(32)}}, "big")), out, Budget(1))
    with pytest.raises(RequestError, match="no dtype 'int8'"):
        extract(base, tuned, out, Budget(1), dtype="int8")
    with pytest.raises(RequestError, match=r"does not end in \.safetensors"):
        extract(base, tuned, tmp_path / "out.bin", Budget(1))
    with pytest.raises(RequestError, match="the folder .* does not exist"):
        extract(base, tuned, tmp_path / "gone" / "out.safetensors", Budget(1))
    assert not list(tmp_path.glob("*out*"))
    out.write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        extract(base, tuned, out, Budget(1))
    assert out.read_text() == "mine"
    extract(base, tuned, out, Budget(1), dtype="fp32", overwrite=True)
    assert len(load_file(out)) == 3


def test_other_architectures(base: Checkpoint, retuned: Callable[..., Path], tmp_path: Path) -> None:
    folder = retuned({})
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.weight": np.zeros((32, 9, 3, 3), np.float32)}, weights)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight of unet is \[32, 4, 3, 3\] and \[32, 9, 3, 3\]"):
        extract(base, Checkpoint.open(folder), tmp_path / "out.safetensors", Budget(1))
    tensors.pop("conv_out.bias")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"different architectures: conv_out\.bias of unet is \[4\] and absent"):
        extract(base, Checkpoint.open(folder), tmp_path / "out.safetensors", Budget(1))
    shutil.rmtree(folder / "unet")
    shutil.copytree(base.folder / "unet", tmp_path / "unet only" / "unet")
    with pytest.raises(CheckpointError, match="no component in common"):
        extract(
            Checkpoint.open(tmp_path / "unet only"), Checkpoint.open(folder), tmp_path / "out.safetensors", Budget(1)
        )
