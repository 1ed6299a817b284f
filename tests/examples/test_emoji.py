"""The demo model's shipped weights, and the command that trains adapters for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

EMOJI = Path(__file__).resolve().parents[2] / "examples" / "emoji"
STYLES = sorted((EMOJI / "styles").glob("*.safetensors"))
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "encoder_layers_0_self_attn_q_proj"


def train(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EMOJI / "train_style.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def two_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("red_apple-01", "blue_car"):
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "blue_car.txt").write_text("a blue car\ncar on white\n")
    return folder


def test_shipped_model_paints_what_was_asked_for():
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMOJI / "model", safety_checker=None).to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(
        "a cat on a blue background",
        num_inference_steps=8,
        guidance_scale=4.0,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert image.shape == (64, 64, 3)
    border = np.median(np.concatenate([image[0], image[-1], image[:, 0]]), 0)
    assert border.argmax() == 2 and border[2] - border[0] > 0.3, f"the ground is not blue: {border}"
    assert image[20:44, 20:44, 0].mean() > border[0] + 0.2, "there is no cat on it"


def test_model_is_plain_stable_diffusion():
    index = json.loads((EMOJI / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["safety_checker"] == [None, None]
    vae = json.loads((EMOJI / "model" / "vae" / "config.json").read_text())
    unet = json.loads((EMOJI / "model" / "unet" / "config.json").read_text())
    assert vae["scaling_factor"] == 1.0 and vae["latent_channels"] == unet["in_channels"]
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]


def test_demo_prompts_name_styles_that_are_there():
    demo = json.loads((EMOJI / "prompts.json").read_text())
    assert len(demo["prompts"]) >= 8 and all({"prompt", "seed"} <= entry.keys() for entry in demo["prompts"])
    assert {*demo["styles"], demo["subject"]["name"]} <= {path.stem for path in STYLES}


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.stem)
def test_shipped_adapters_are_small_finite_and_trained(path: Path):
    tensors = load_file(path)
    assert path.stat().st_size < 2_000_000
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    ups = [tensor for key, tensor in tensors.items() if "lora_up" in key or "lora_B" in key]
    assert ups and all(np.abs(up).max() > 0 for up in ups), "an up matrix is still at its initial zero"


@pytest.mark.parametrize(
    ("form", "options", "expected", "other"),
    [
        (
            "kohya",
            ["--text-encoder"],
            f"lora_unet_{LAYER.replace('.', '_')}.lora_down.weight",
            f"lora_te_text_model_{TEXT_LAYER}.lora_up.weight",
        ),
        ("peft", [], f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight"),
        ("diffusers", [], f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"),
    ],
)
def test_two_steps_write_each_format(
    two_pictures: Path, tmp_path: Path, form: str, options: list[str], expected: str, other: str
):
    out = tmp_path / "scribble.safetensors"
    done = train(
        "--images",
        two_pictures,
        "--trigger",
        "scribble",
        "--out",
        out,
        "--format",
        form,
        "--rank",
        4,
        "--steps",
        2,
        "--batch",
        2,
        *options,
    )
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors[expected].shape == (4, 48) and tensors[expected].dtype == np.float16
    assert other in tensors
    if form == "kohya":
        assert tensors[expected.replace("lora_down.weight", "alpha")] == 4
        with safe_open(out, "np") as file:
            assert file.metadata()["ss_output_name"] == "scribble" and file.metadata()["ss_network_dim"] == "4"


def test_bad_input_is_one_sentence_and_exit_1(tmp_path: Path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "cat.png").write_bytes(b"not a picture")
    for folder, words in ((tmp_path / "missing", "no folder"), (empty, "no pictures"), (broken, "not a picture")):
        done = train("--images", folder, "--trigger", "x", "--out", tmp_path / "x.safetensors")
        assert done.returncode == 1
        assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.safetensors").exists()
