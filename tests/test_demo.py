"""The demo model with the styles that were trained for it, against diffusers with PEFT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from lora_edge.adapterfile import read_adapter
from lora_edge.library import Library
from lora_edge.runtime.engine import Engine

EMOJI = Path(__file__).parent.parent / "examples" / "emoji"
PROMPTS = json.loads((EMOJI / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine(emoji_bundle: Path) -> Engine:
    return Engine.open(emoji_bundle, lora_dir=EMOJI / "styles", threads=1)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """diffusers' own reading of the same files; a PEFT file names no component, which diffusers wants to be told."""
    pipe = StableDiffusionPipeline.from_pretrained(EMOJI / "model", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for path in sorted((EMOJI / "styles").glob("*.safetensors")):
        state = {key.replace("base_model.model.", "unet."): tensor for key, tensor in load_file(path).items()}
        pipe.load_lora_weights({key: tensor.float() for key, tensor in state.items()}, adapter_name=path.stem)
    return pipe


def combinations() -> list[dict[str, float]]:
    styles = PROMPTS["styles"]
    return [{}, *({style: 0.7} for style in styles), {styles[0]: 0.6, styles[1]: 0.4}]


@pytest.mark.parametrize("adapters", combinations(), ids=str)
def test_images_equal_those_of_diffusers_with_peft(engine: Engine, pipe: Any, adapters: dict[str, float]) -> None:
    item = PROMPTS["prompts"][0]
    pipe.enable_lora() if adapters else pipe.disable_lora()
    if adapters:
        pipe.set_adapters(list(adapters), list(adapters.values()))
    generator = torch.Generator().manual_seed(item["seed"])
    theirs = pipe(item["prompt"], num_inference_steps=20, guidance_scale=4.0, generator=generator).images[0]
    tags = "".join(f"<lora:{name}:{m}>" for name, m in adapters.items())
    [ours] = engine.generate(item["prompt"] + tags, seed=item["seed"], steps=20, guidance=4.0)
    assert psnr(ours, theirs) >= 50


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def test_the_styles_are_of_three_formats_and_fit_whole(engine: Engine) -> None:
    library = Library(EMOJI / "styles")
    assert set(PROMPTS["styles"]) | {PROMPTS["subject"]["name"]} <= set(library.names())
    spellings = set()
    for name in library.names():
        file = read_adapter(library.find(name))
        spellings |= {tensor.split(".")[0].split("_blocks")[0] for tensor in file.tensors.names}
        assert not engine.load_adapter(library.find(name)).report.unused
    assert {"base_model", "unet"} <= spellings and any(start.startswith("lora_unet") for start in spellings)


def test_a_style_shows_and_grows_with_its_multiplier(engine: Engine) -> None:
    """Distance from the plain picture, in mean absolute difference of pixels."""
    item = PROMPTS["prompts"][1]
    for style in PROMPTS["styles"]:
        plain, half, full = (
            np.asarray(engine.generate(f"{item['prompt']}<lora:{style}:{m}>", seed=item["seed"])[0], dtype=float)
            for m in (0, 0.5, 1)
        )
        assert np.abs(full - plain).mean() > 10
        assert np.abs(full - plain).mean() > np.abs(half - plain).mean() > 1
