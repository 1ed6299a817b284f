"""The command line as a user meets it: exit codes, one sentence, nothing half-written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lora_edge.runtime.engine import Engine


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_edge", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)


def refused(*words: object, cwd: Path | None = None) -> str:
    """The one sentence on stderr of a command that exits with 1."""
    done = run(*words, cwd=cwd)
    assert done.returncode == 1, done
    assert done.stdout == "" and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lora-edge: ")]
    return line


def test_an_image_by_one_command(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    done = run(
        "generate", tiny_bundle, "a red apple <lora:ink:0.8>", "--lora-dir", styles, "--seed", 7, "--steps", 4,
        "--batch", 2, "--preview-every", 2, "-o", tmp_path / "a.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.png", "a.png", "a.step02-2.png", "a.step02.png"]
    image = Image.open(tmp_path / "a-2.png")
    text = image.info["parameters"]
    assert text.startswith("a red apple <lora:ink:0.8>\nSteps: 4, Sampler: Euler, CFG scale: 4, Seed: 8, Size: 64x64")
    [same, _] = Engine.open(tiny_bundle, lora_dir=styles).generate(
        "a red apple <lora:ink:0.8>", seed=7, steps=4, batch=2
    )
    assert np.array_equal(np.asarray(same), np.asarray(Image.open(tmp_path / "a.png")))


def test_json(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    done = run("generate", tiny_bundle, "x", "--steps", 1, "--seed", 1, "--json", "-o", tmp_path / "x.png")
    told = json.loads(done.stdout)
    assert told["images"][0]["file"] == str(tmp_path / "x.png") and told["engine"]["sessions_opened"] == 3
    listed = json.loads(run("loras", styles, "--bundle", tiny_bundle, "--json").stdout)
    assert [row["name"] for row in listed] == ["fog", "glow", "ink"]
    assert all(row["fits"] is True for row in listed)
    about = json.loads(run("inspect", styles / "ink.safetensors", "--json").stdout)
    assert about["kinds"] == ["lora"] and about["ranks"] == [4] and len(about["hash"]) == 12
    assert json.loads(run("verify", tiny_bundle, "--json").stdout)["files"] > 10


def test_plain_output(tiny_bundle: Path, styles: Path) -> None:
    assert "glow" in run("loras", styles).stdout
    assert re.search(r"ranks +4\n", run("inspect", styles / "ink.safetensors", "--bundle", tiny_bundle).stdout)
    assert "files as they were exported" in run("verify", tiny_bundle).stdout
    for command in ("export", "generate", "loras", "inspect", "verify"):
        assert command in run("--help").stdout
        assert "Usage" in run(command, "--help").stdout


def test_wrong_usage_exits_with_2() -> None:
    assert run("generate").returncode == 2
    assert run("paint").returncode == 2


def test_each_refusal_is_one_sentence_and_writes_nothing(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    good = load_file(styles / "ink.safetensors")
    (folder / "torn.safetensors").write_bytes((styles / "ink.safetensors").read_bytes()[:-7])
    broken = {**good, next(iter(good)): np.full_like(next(iter(good.values())), np.nan)}
    save_file(broken, folder / "nan.safetensors")
    save_file(
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": np.ones((2, 2), np.float32)},
        folder / "flux.safetensors",
    )
    out = tmp_path / "out"
    out.mkdir()

    def generate(prompt: str, *more: object) -> str:
        return refused("generate", tiny_bundle, prompt, "--lora-dir", folder, "-o", out / "x.png", *more)

    assert "there is no adapter 'gone'" in generate("<lora:gone:1>")
    assert "torn.safetensors" in generate("<lora:torn:1>")
    assert "not finite" in generate("<lora:nan:1>")
    assert "flux" in generate("<lora:flux:1>").lower()
    assert "is not a number" in generate("<lora:gone:loud>") or "loud" in generate("<lora:gone:loud>")
    assert "no CUDAExecutionProvider on this machine" in generate("x", "--provider", "CUDAExecutionProvider")
    assert "no sampler" in generate("x", "--sampler", "magic")
    assert "does not end in .png" in refused("generate", tiny_bundle, "x", "-o", out / "x.jpg")
    assert "does not exist" in refused("generate", tiny_bundle, "x", "-o", out / "deep" / "x.png")
    assert "is not a bundle" in refused("generate", styles, "x", "-o", out / "x.png")
    assert "is not a folder" in refused("export", tmp_path / "gone", out / "bundle")
    assert not list(out.iterdir())


@pytest.mark.parametrize("word", ["format", "abi"])
def test_other_versions_are_refused(tiny_bundle: Path, tmp_path: Path, word: str) -> None:
    manifest = json.loads((tiny_bundle / "lora_edge.json").read_text(encoding="utf-8"))
    (tmp_path / "lora_edge.json").write_text(json.dumps({**manifest, word: 99}), encoding="utf-8")
    assert f"was written with {word} 99" in refused("verify", tmp_path)


def test_the_help_names_every_sampler() -> None:
    from lora_edge.runtime.samplers import SAMPLERS

    assert set(SAMPLERS) <= set(re.findall(r"\w+", run("generate", "--help").stdout))
