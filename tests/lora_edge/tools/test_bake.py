"""Baking: diffusers' own fusing for LoRA, the written formulas for every other kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_edge.adapter import Adapter, Report
from lora_edge.adapterfile import read_adapter
from lora_edge.embedding import Embedding
from lora_edge.errors import AdapterMismatch, AdapterValueError, CheckpointError, RequestError
from lora_edge.forms import LowRank
from lora_edge.tools.bake import bake
from lora_edge.tools.checkpoint import Checkpoint
from lora_edge.tools.combine import Multiplied
from lora_edge.tools.extract import extract
from lora_edge.tools.svd import Budget

UNET = "unet/diffusion_pytorch_model.safetensors"
Opened = Callable[..., Multiplied]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_diffusers_fuses_the_same(base: Checkpoint, styles: Path, opened: Opened, tmp_path: Path) -> None:
    """Two adapters, UNet and text encoder, Linear and Conv."""
    names = {"ink": "ink.safetensors", "glow": "deep/glow.safetensors"}
    theirs = StableDiffusionPipeline.from_pretrained(base.folder)
    for name, file in names.items():
        theirs.load_lora_weights(styles / file, adapter_name=name)
    theirs.set_adapters(list(names), [0.8, -0.5])
    theirs.fuse_lora(adapter_names=list(names))
    theirs.unload_lora_weights()
    made = bake(base, tmp_path / "baked", [opened(styles / names["ink"], 0.8), opened(styles / names["glow"], -0.5)])
    ours = StableDiffusionPipeline.from_pretrained(made.path)
    before = StableDiffusionPipeline.from_pretrained(base.folder)
    changed = {"unet": 0, "text_encoder": 0}
    for component in changed:
        parts = [getattr(pipe, component).state_dict() for pipe in (ours, theirs, before)]
        assert parts[0].keys() == parts[1].keys()
        for name, weight in parts[0].items():
            torch.testing.assert_close(weight, parts[1][name], rtol=0, atol=1e-6)
            changed[component] += not torch.equal(weight, parts[2][name])
    assert changed == dict(made.changed) and min(changed.values()) > 0 and made.left_out == ()
    assert files(made.path) == files(base.folder)


@pytest.mark.parametrize("multiplier", [0.7, -0.5])
def test_every_kind_by_its_formula(
    base: Checkpoint, zoo: Any, changed: Any, opened: Opened, tmp_path: Path, multiplier: float
) -> None:
    """W + mu (W'_1 - W), two files summed, with the text encoder's multiplier apart."""
    wanted: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    adapters = []
    for seed, (text, unet) in enumerate(((0.25, multiplier), (-1.0, 1.0))):
        tensors, changes = zoo.file_of_all(base, seed)
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        adapters.append(opened(tmp_path / f"{seed}.safetensors", text, unet))
        for component, part in changes.items():
            for name, change in part.items():
                factor = unet if component == "unet" else text
                wanted[component][name] = wanted[component].get(name, 0.0) + factor * change
    made = bake(base, tmp_path / "baked", adapters)
    assert made.changed == {component: len(part) for component, part in wanted.items()}
    for component, part in wanted.items():
        found = {
            name.removeprefix("text_model."): delta
            for name, delta in changed(base.folder, made.path, component).items()
        }
        assert found.keys() == {name.removeprefix("text_model.") for name in part}
        for name, change in part.items():
            delta = found[name.removeprefix("text_model.")]
            assert abs(delta - change).max() <= 1e-5 * abs(change).max() + 1e-6, name


def test_multiplier_0_is_the_base_bit_for_bit(base: Checkpoint, zoo: Any, opened: Opened, tmp_path: Path) -> None:
    save_file(zoo.file_of_all(base, 0)[0], tmp_path / "all.safetensors")
    made = bake(base, tmp_path / "baked", [opened(tmp_path / "all.safetensors", 0.0)])
    assert all((made.path / name).read_bytes() == (base.folder / name).read_bytes() for name in files(base.folder))
    half = bake(base, tmp_path / "text", [opened(tmp_path / "all.safetensors", 1.0, 0.0)])
    assert half.changed["unet"] == 0 < half.changed["text_encoder"]
    assert (half.path / UNET).read_bytes() == (base.folder / UNET).read_bytes()


def test_bake_then_extract_gives_the_adapter_back(
    base: Checkpoint, styles: Path, opened: Opened, tmp_path: Path
) -> None:
    ink = opened(styles / "ink.safetensors")
    made = bake(base, tmp_path / "baked", [ink])
    found = extract(base, Checkpoint.open(made.path), tmp_path / "again.safetensors", Budget(4), dtype="fp32")
    assert found.share > 1 - 1e-9
    again = read_adapter(found.path).fit(base.tables)
    assert again.components.keys() == ink.adapter.components.keys()
    for component, part in ink.adapter.components.items():
        assert again.components[component].slots.keys() == part.slots.keys()
        for name, forms in part.slots.items():
            one, other = (_dense(each) for each in (forms, again.components[component].slots[name]))
            assert abs(one - other).max() < 1e-5 * abs(one).max()


def _dense(forms: Any) -> Any:
    (form,) = forms
    assert isinstance(form, LowRank)
    return form.scale * form.down.astype(np.float64) @ form.up


def test_every_file_of_weights_in_its_own_dtype(base: Checkpoint, styles: Path, opened: Opened, tmp_path: Path) -> None:
    """Shards in bfloat16 and an fp16 variant; stale copies are left out, hidden files too."""
    folder = tmp_path / "many"
    shutil.copytree(base.folder, folder)
    (folder / UNET).unlink()
    unet = UNet2DConditionModel.from_pretrained(base.folder / "unet")
    unet.to(torch.float16).save_pretrained(folder / "unet", variant="fp16")
    unet = UNet2DConditionModel.from_pretrained(base.folder / "unet", torch_dtype=torch.bfloat16)
    unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    for name in ("unet/diffusion_pytorch_model.bin", "whole.ckpt", "vae/keep.bin", ".cache/x", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"stale")
    many = Checkpoint.open(folder)
    adapter = Multiplied(read_adapter(styles / "deep" / "glow.safetensors").fit(many.tables, base=many), 1.0, 0.6)
    made = bake(many, tmp_path / "baked", [adapter])
    assert made.left_out == ("unet/diffusion_pytorch_model.bin", "whole.ckpt")
    assert files(made.path) == files(folder) - {*made.left_out, ".cache/x"}
    whole = bake(base, tmp_path / "whole", [opened(styles / "deep" / "glow.safetensors", 0.6)])
    exact = load_file(whole.path / UNET)
    for variant, dtype, step in ((None, torch.bfloat16, 2**-8), ("fp16", torch.float16, 2**-11)):
        again = UNet2DConditionModel.from_pretrained(made.path / "unet", variant=variant, torch_dtype=dtype)
        for name, weight in again.state_dict().items():
            assert weight.dtype == dtype
            error = (weight.double() - torch.from_numpy(exact[name]).double()).abs()
            assert (error <= 2.1 * step * (torch.from_numpy(exact[name]).double().abs() + 0.1)).all(), name
    for path in (folder / "unet").glob("*.safetensors"):
        with safe_open(path, "pt") as one, safe_open(made.path / "unet" / path.name, "pt") as other:
            assert one.metadata() == other.metadata() and list(one.keys()) == list(other.keys())


def adapter_of(save: Any, base: Checkpoint, tensors: dict[str, Any]) -> Multiplied:
    return Multiplied(read_adapter(save(tensors)).fit(base.tables, base=base))


def test_refusals(base: Checkpoint, save: Any, styles: Path, opened: Opened, tmp_path: Path) -> None:
    ink, out = opened(styles / "ink.safetensors"), tmp_path / "baked"
    to_q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    with pytest.raises(AdapterMismatch, match=r"attn1\.to_q of unet has no bias"):
        bake(base, out, [adapter_of(save, base, {f"{to_q}.diff_b": np.ones(32, np.float32)})])
    half = tmp_path / "half"
    shutil.copytree(base.folder, half)
    tensors = load_file(half / UNET)
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, half / UNET)
    loud = {f"{to_q}.diff": np.full((32, 32), 1e5, np.float32)}
    with pytest.raises(AdapterValueError, match=r"attn1\.to_q\.weight of .* has numbers that do not fit F16"):
        bake(Checkpoint.open(half), out, [adapter_of(save, Checkpoint.open(half), loud)])
    save_file({"conv_in.weight": tensors["conv_in.weight"]}, half / "unet" / "diffusion_pytorch_model.ema.safetensors")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors has no .*to_q\.weight"):
        bake(Checkpoint.open(half), out, [adapter_of(save, Checkpoint.open(half), loud)])
    with pytest.raises(RequestError, match="lie inside each other"):
        bake(base, base.folder / "unet" / "x", [ink])
    with pytest.raises(RequestError, match="lie inside each other"):
        bake(base, base.folder, [ink], overwrite=True)
    with pytest.raises(RequestError, match="does not exist"):
        bake(base, tmp_path / "gone" / "x", [ink])
    with pytest.raises(RequestError, match="is not a finite number"):
        Multiplied(ink.adapter, 1e39)
    words = Adapter("w", (), {}, {}, Report(), embeddings=(Embedding("zap", {}),))
    with pytest.raises(AdapterMismatch, match="brings the words 'zap', which no layer can hold"):
        bake(base, out, [Multiplied(words)])
    assert not list(tmp_path.glob("*baked*"))


def test_what_is_there_stays(base: Checkpoint, styles: Path, opened: Opened, tmp_path: Path) -> None:
    ink, out = opened(styles / "ink.safetensors"), tmp_path / "baked"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for overwrite, sentence in ((False, "exists already"), (True, "has no model_index.json")):
        with pytest.raises(RequestError, match=sentence):
            bake(base, out, [ink], overwrite=overwrite)
    assert files(out) == {"mine.txt"} and not list(tmp_path.glob("*.partial"))
    first = bake(base, tmp_path / "model", [ink])
    (first.path / "old.txt").write_text("of the first one")
    bake(base, first.path, [ink], overwrite=True)
    assert files(first.path) == files(base.folder)
