"""`lora-edge pack` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_edge", "pack", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)


def test_packs_appear_in_the_current_folder(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    ink = styles / "ink.safetensors"
    done = run(ink, "--bundle", tiny_bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Wrote ink.pack.safetensors: 0.1 MB for tiny (")
    again = run(ink, "--bundle", tiny_bundle, cwd=tmp_path)
    assert again.returncode == 1 and "ink.pack.safetensors exists already" in again.stderr
    forced = run(ink, "--bundle", tiny_bundle, "--dtype", "fp32", "--force", "--json", cwd=tmp_path)
    told = json.loads(forced.stdout)
    assert told["files"][0]["file"] == "ink.pack.safetensors"
    with safe_open(tmp_path / "ink.pack.safetensors", "np") as file:
        assert json.loads(file.metadata()["lora_edge_pack"])["bundle"]["fingerprint"] == told["bundle"]

    done = run("ink.pack.safetensors", "--bundle", tiny_bundle, "--format", "onnx_adapter", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(
        styles / "fog", "--bundle", tiny_bundle, "--format", "onnx_adapter", "-o", "f.onnx_adapter", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    names = ["f.unet.onnx_adapter", "ink.text_encoder.onnx_adapter", "ink.unet.onnx_adapter"]
    assert sorted(path.name for path in tmp_path.glob("*.onnx_adapter")) == names


def test_refusals_are_one_sentence(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    half = ("--format", "onnx_adapter", "--dtype", "fp16")
    for words, sentence in (
        ((styles / "ink.safetensors", "--bundle", tiny_bundle, *half), "an .onnx_adapter holds float32"),
        ((styles / "ink.safetensors", "--bundle", tiny_bundle, "--component", "unet"), "belongs to text_encoder"),
        ((styles / "gone.safetensors", "--bundle", tiny_bundle), "does not exist"),
        ((styles / "ink.safetensors", "--bundle", styles), "is not a bundle"),
    ):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "") and sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
