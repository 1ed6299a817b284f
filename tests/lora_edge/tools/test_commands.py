"""`lora-edge extract`, `resize`, `merge` and `bake` as a user meets them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lora_edge.adapterfile import read_adapter
from lora_edge.cli import main
from lora_edge.forms import LowRank
from lora_edge.tools.checkpoint import Checkpoint

Run = Callable[..., tuple[int, str, str]]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("merge", ...) -> exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lora-edge", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def refused(done: tuple[int, str, str]) -> str:
    code, out, err = done
    assert code == 1 and out == "", done
    (line,) = [line for line in err.splitlines() if line.startswith("lora-edge: ")]
    return line


def test_bake_extract_and_back(run: Run, tiny_model: Path, styles: Path, tmp_path: Path) -> None:
    ink, baked, again = styles / "ink.safetensors", tmp_path / "baked", tmp_path / "again.safetensors"
    code, out, err = run("bake", tiny_model, baked, f"{ink}:0.5:1", styles / "fog")
    assert code == 0 and out.startswith(f"Wrote {baked}: ") and "tensors of unet" in out and "%" in err
    code, out, err = run("extract", tiny_model, baked, again, "--rank", 4, "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and told["ranks"] == [4] and 0.5 < told["energy"] < 1
    assert told["bytes"] == again.stat().st_size
    assert set(told["layers"][0]) == {"name", "rank", "kept", "total", "energy"}
    exactly = ("--rank", 10, "--min-energy", 0.999, "--dtype", "fp32")
    code, out, _ = run("extract", tiny_model, baked, again, *exactly, "--force")
    assert code == 0 and "100.00% of the energy, " in out and "layers that lost most" not in out
    code, out, _ = run("extract", tiny_model, baked, again, "--rank", 4, "--force")
    assert code == 0 and "of the energy, " in out and "layers that lost most" in out
    assert "exists already" in refused(run("extract", tiny_model, baked, again, "--rank", 4))


def test_what_is_left_out_is_said(run: Run, tiny_model: Path, retuned: Any, tmp_path: Path) -> None:
    folder = retuned({"unet": {"conv_in.weight": np.ones((32, 4, 3, 3)), "conv_in.bias": np.ones(32)}})
    code, out, err = run("extract", tiny_model, folder, tmp_path / "x.safetensors", "--rank", 1, "--no-norms")
    assert code == 0 and "lora-edge: left out, as biases and norms were not asked for: conv_in.bias of unet" in err
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"stale")
    code, out, err = run("bake", folder, tmp_path / "baked", tmp_path / "x.safetensors")
    assert code == 0 and "not copied, as they hold the base's weights: unet/diffusion_pytorch_model.bin" in err


def test_resize(run: Run, styles: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    code, told, _ = run("resize", styles / "deep" / "glow.safetensors", out, "--rank", 2, "--json")
    assert code == 0 and json.loads(told)["ranks"] == [2]
    assert set(load_file(out)) == set(load_file(styles / "deep" / "glow.safetensors"))
    assert "say how much to keep" in refused(run("resize", styles / "fog", tmp_path / "x.safetensors"))
    assert run("resize", styles / "fog", tmp_path / "x.safetensors", "--rank", 0)[0] == 2


@pytest.mark.parametrize("option", ["--bundle", "--base"])
def test_any_kind_becomes_a_lora(
    run: Run, tiny_model: Path, tiny_bundle: Path, base: Checkpoint, zoo: Any, tmp_path: Path, option: str
) -> None:
    source, out = tmp_path / "all.safetensors", tmp_path / "small.safetensors"
    tensors, changes = zoo.file_of_all(base, 0)
    save_file(tensors, source)
    assert "are no plain LoRA" in refused(run("resize", source, out, "--rank", 3))
    where = tiny_bundle if option == "--bundle" else tiny_model
    assert run("resize", source, out, "--rank", 3, option, where, "--dtype", "fp32")[0] == 0
    adapter = read_adapter(out).fit(base.tables)
    assert set(adapter.kinds) <= {"lora", "lora+bias", "norm"}
    for table in base.tables:
        for name, forms in adapter.components[table.component].slots.items():
            form = forms[0]
            assert isinstance(form, LowRank) and form.rank == 3
            change = changes[table.component][f"{name}.weight"]
            flat = torch.from_numpy(change.reshape(len(change), -1))
            left, values, right = torch.linalg.svd(flat, full_matrices=False)
            best = ((left[:, :3] * values[:3]) @ right[:3]).numpy()
            np.testing.assert_allclose((form.down @ form.up).T, best, atol=3e-5 * abs(change).max())


def test_merge(run: Run, tiny_model: Path, tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    ink, out = styles / "ink.safetensors", tmp_path / "both.safetensors"
    code, told, _ = run("merge", f"{ink}:0.5", styles / "fog", out, "--bundle", tiny_bundle)
    assert code == 0 and f"Wrote {out}" in told
    files = (f"{ink}:0.5:0", styles / "fog", out)
    code, told, _ = run("merge", *files, "--base", tiny_model, "--rank", 2, "--force", "--json")
    assert code == 0 and json.loads(told)["ranks"] == [2]
    assert "with either --bundle BUNDLE or --base CHECKPOINT" in refused(run("merge", ink, tmp_path / "x.safetensors"))
    both = ("--bundle", tiny_bundle, "--base", tiny_model)
    assert "with either --bundle" in refused(run("merge", ink, tmp_path / "x.safetensors", *both))
    assert "does not exist" in refused(run("merge", f"{ink}:loud", tmp_path / "x.safetensors", "--base", tiny_model))
    assert "nothing is left" in refused(run("merge", f"{ink}:0", tmp_path / "x.safetensors", "--base", tiny_model))
    assert "is not a bundle" in refused(run("merge", ink, tmp_path / "x.safetensors", "--bundle", tiny_model))
    assert run("merge", ink)[0] == 2


def test_each_refusal_writes_nothing(run: Run, tiny_model: Path, styles: Path, save: Any, tmp_path: Path) -> None:
    ink, out = styles / "ink.safetensors", tmp_path / "out" / "x"
    out.parent.mkdir()
    assert "is not a folder" in refused(run("bake", tmp_path / "gone", out, ink))
    assert "no model in diffusers layout" in refused(run("bake", styles, out, ink))
    assert "is not a folder" in refused(run("extract", ink, tiny_model, f"{out}.safetensors", "--rank", 4))
    assert "do not differ" in refused(run("extract", tiny_model, tiny_model, f"{out}.safetensors", "--rank", 4))
    assert ".safetensors" in refused(run("extract", tiny_model, tiny_model, f"{out}.bin", "--rank", 4))
    foreign = save({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": np.ones((2, 2), np.float32)})
    assert "double_blocks" in refused(run("bake", tiny_model, out, foreign))
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(run("bake", tiny_model, tmp_path / "there", ink))
    assert not list(out.parent.iterdir())
