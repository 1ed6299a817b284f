"""Whole requests, against diffusers with PEFT and against fresh engines."""

import gc
import json
import random
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

import lora_edge
from lora_edge import errors
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.generate import Progress
from lora_edge.runtime.shelf import Shelf
from lora_edge.runtime.size import Size

PROMPT = "a red apple"
SCHEDULERS = {"euler": EulerDiscreteScheduler, "ddim": DDIMScheduler}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((pixels(one) - pixels(other)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def pipe(tiny_model: Path, styles: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(styles), weight_name="ink.safetensors", adapter_name="ink")
    pipe.load_lora_weights(str(styles / "deep"), weight_name="glow.safetensors", adapter_name="glow")
    return pipe


def diffusers_image(pipe: Any, adapters: dict[str, float], sampler: str, seed: int, **sizes: int) -> Image.Image:
    pipe.scheduler = SCHEDULERS[sampler].from_config(pipe.scheduler.config, timestep_spacing="trailing")
    if adapters:
        pipe.enable_lora()
        pipe.set_adapters(list(adapters), list(adapters.values()))
    else:
        pipe.disable_lora()
    made: Image.Image = pipe(
        PROMPT,
        negative_prompt="blue",
        num_inference_steps=12,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
        **sizes,
    ).images[0]
    return made


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("adapters", [{}, {"ink": 1.0}, {"glow": 0.8}, {"ink": 0.6, "glow": 0.4}], ids=str)
def test_images_equal_those_of_diffusers_with_peft(
    engine: Engine, pipe: StableDiffusionPipeline, adapters: dict[str, float], sampler: str
) -> None:
    tags = "".join(f"<lora:{name}:{m}>" for name, m in adapters.items())
    settings = {"seed": 7, "steps": 12, "sampler": sampler, "timestep_spacing": "trailing"}
    [ours] = engine.generate(PROMPT + tags, "blue", width=96, height=64, **settings)
    theirs = diffusers_image(pipe, adapters, sampler, 7, width=96, height=64)
    assert psnr(ours, theirs) >= 50
    if adapters:
        [plain] = engine.generate(PROMPT, "blue", width=96, height=64, **settings)
        assert psnr(ours, plain) < 40, "the adapter shows"


def test_a_multiplier_of_zero_is_no_adapter(engine: Engine) -> None:
    [plain] = engine.generate(PROMPT, seed=3, steps=4)
    [off] = engine.generate(PROMPT + "<lora:ink:0>", seed=3, steps=4)
    [balanced] = engine.generate(PROMPT + "<lora:ink:0.5><lora:ink:-0.5>", seed=3, steps=4)
    assert np.array_equal(pixels(plain), pixels(off)) and np.array_equal(pixels(plain), pixels(balanced))


def test_tags_and_adapters_given_by_hand_are_the_same(engine: Engine, styles: Path) -> None:
    ink = engine.load_adapter(styles / "ink.safetensors")
    [tagged] = engine.generate(PROMPT + "<lora:ink:0.3:0.8>", seed=3, steps=4)
    by_hand = [(ink, lora_edge.Multiplier(text=0.3, unet=0.8))]
    [given] = engine.generate(PROMPT, seed=3, steps=4, adapters=by_hand)
    assert np.array_equal(pixels(tagged), pixels(given))


def test_a_batch_equals_its_images_alone(engine: Engine) -> None:
    batch = engine.generate(PROMPT + "<lora:glow:0.7>", seed=20, steps=6, batch=3, sampler="euler_a")
    for row, image in enumerate(batch):
        [alone] = engine.generate(PROMPT + "<lora:glow:0.7>", seed=20 + row, steps=6, sampler="euler_a")
        assert psnr(image, alone) >= 60


@pytest.mark.parametrize("name", ["deep/glow", "ink"], ids=["UNet", "UNet and text encoder"])
def test_one_multiplier_per_image(engine: Engine, styles: Path, name: str) -> None:
    style = engine.load_adapter(styles / f"{name}.safetensors")
    batch = engine.generate(PROMPT, seed=5, steps=4, batch=3, adapters=[(style, [0.0, 0.5, 1.0])])
    for row, multiplier in enumerate((0.0, 0.5, 1.0)):
        [alone] = engine.generate(PROMPT, seed=5 + row, steps=4, adapters=[(style, multiplier)])
        assert psnr(batch[row], alone) >= 60


def test_run_takes_components_one_by_one(engine: Engine, styles: Path) -> None:
    fog = engine.load_adapter(styles / "fog")
    inputs = {"sample": np.zeros((1, 4, 16, 16)), "timestep": 5, "encoder_hidden_states": np.ones((1, 77, 64))}
    base, styled = engine.run("unet", inputs), engine.run("unet", inputs, adapters=[(fog, 0.8)])
    assert base["out_sample"].shape == (1, 4, 16, 16)
    assert not np.array_equal(base["out_sample"], styled["out_sample"])
    text = engine.run("text_encoder", {"input_ids": np.zeros((2, 77))})
    assert {"last_hidden_state", "pooler_output"} <= text.keys()
    decoded = engine.run("vae_decoder", {"latent_sample": np.zeros((1, 4, 16, 16))})
    assert decoded["sample"].shape == (1, 3, 64, 64)
    encoded = engine.run("vae_encoder", {"sample": decoded["sample"]})
    assert encoded["latent_parameters"].shape == (1, 8, 16, 16)


def test_progress_preview_and_cancel(engine: Engine) -> None:
    seen: list[tuple[int, int, tuple[int, int]]] = []

    def on_step(progress: Progress) -> bool:
        seen.append((progress.step, progress.steps, progress.preview()[0].size))
        return progress.step < 3

    with pytest.raises(errors.Cancelled, match="after step 3 of 9"):
        engine.generate(PROMPT, steps=9, on_step=on_step)
    assert seen == [(step, 9, (64, 64)) for step in (1, 2, 3)]


def test_requests_that_cannot_be_met_are_refused_before_the_first_step(engine: Engine, styles: Path) -> None:
    ink = engine.load_adapter(styles / "ink.safetensors")
    refusals: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"width": 65}, errors.RequestError, "width 65 is not a positive multiple of 8; try 64"),
        ({"height": 0}, errors.RequestError, "height 0 is not"),
        ({"width": 80000, "height": 80000}, errors.RequestError, "pixels are more than"),
        ({"steps": 0}, errors.RequestError, "steps is 0"),
        ({"batch": 0}, errors.RequestError, "batch is 0"),
        ({"guidance": float("nan")}, errors.RequestError, "guidance is nan"),
        ({"sampler": "eular"}, errors.RequestError, "did you mean euler"),
        ({"seed": 2**65}, errors.RequestError, "seed"),
        ({"timestep_spacing": "odd"}, errors.RequestError, "timestep_spacing"),
        ({"prompt": "x <lora:inc:1>"}, errors.AdapterNotFound, "'ink'"),
        ({"prompt": "x <lora:../../etc/passwd:1>"}, errors.AdapterNotFound, "no adapter"),
        ({"prompt": "x <lora:ink:much>"}, errors.PromptError, "much"),
        ({"negative_prompt": "<lora:ink:1>"}, errors.PromptError, "negative prompt"),
        ({"adapters": [(ink, float("inf"))]}, errors.RequestError, "not a finite number"),
        ({"adapters": [(ink, [0.1, 0.2])]}, errors.RequestError, "2 multipliers"),
        ({"adapters": ["ink"]}, errors.RequestError, "list of"),
        ({"lora_dir": "nowhere", "prompt": "x <lora:ink:1>"}, errors.AdapterNotFound, "nowhere"),
    ]
    for settings, error, words in refusals:
        steps: list[Progress] = []
        with pytest.raises(error, match=words):
            engine.generate(**{"prompt": PROMPT, "on_step": steps.append, **settings})
        assert not steps


def test_configs_that_say_no_size_are_refused() -> None:
    assert Size.of({"block_out_channels": [1, 2, 3, 4]}, {"block_out_channels": [1, 2, 3, 4]}) == Size(8, 64, 512)
    with pytest.raises(errors.BundleDamaged, match="do not say their sizes"):
        Size.of({"block_out_channels": [1]}, {})


def test_wrong_inputs_of_a_component_are_refused(engine: Engine) -> None:
    good = {"sample": np.zeros((1, 4, 16, 16)), "timestep": 5, "encoder_hidden_states": np.ones((1, 77, 64))}
    with pytest.raises(errors.RequestError, match="missing: timestep"):
        engine.run("unet", {key: good[key] for key in ("sample", "encoder_hidden_states")})
    with pytest.raises(errors.RequestError, match="unknown: time"):
        engine.run("unet", {**good, "time": 3})
    with pytest.raises(errors.RequestError, match=r"sample has the shape \[1, 3, 16, 16\]"):
        engine.run("unet", {**good, "sample": np.zeros((1, 3, 16, 16))})
    with pytest.raises(errors.ComponentMissing, match="it has text_encoder, unet"):
        engine.run("controlnet", {})
    with pytest.raises(errors.GraphFailed):
        engine.run("unet", {**good, "sample": np.zeros((1, 4, 15, 15))})


def test_providers_are_refused_where_onnxruntime_lacks_them(tiny_bundle: Path) -> None:
    for provider in ("CUDAExecutionProvider", "CoreMLExecutionProvider"):
        with pytest.raises(errors.BackendUnavailable, match=f"no {provider} on this machine; it has .*CPU"):
            Engine.open(tiny_bundle, providers=[provider, "CPUExecutionProvider"])
    with pytest.raises(errors.BackendUnavailable, match="no backend 'tpu'"):
        Engine.open(tiny_bundle, backend="tpu")


def test_an_adapter_that_was_written_anew_is_read_anew(engine: Engine, styles: Path, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes((styles / "ink.safetensors").read_bytes())
    first = engine.load_adapter(path)
    assert engine.load_adapter(path) is first
    path.write_bytes((styles / "deep" / "glow.safetensors").read_bytes())
    assert engine.load_adapter(path) is not first


REQUESTS = """
import json, random, sys
from pathlib import Path
from lora_edge.runtime.engine import Engine

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024

bundle, styles, chosen = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
engine = Engine.open(bundle, lora_dir=styles, threads=1)
sessions, sizes = [], []
for prompt in chosen:
    engine.generate(prompt, seed=1, steps=1)
    sessions.append(engine.info["sessions_opened"])
    sizes.append(resident())
last = engine.generate(chosen[-1], seed=1, steps=1)[0]
last.save(sys.argv[4])
print(json.dumps({"sessions": sessions, "sizes": sizes}))
"""


def random_prompts(count: int) -> list[str]:
    chosen = random.Random(0)
    names = ["ink", "glow", "fog"]
    return [
        PROMPT
        + "".join(f"<lora:{name}:{chosen.uniform(-1, 1.5):.2f}>" for name in chosen.sample(names, chosen.randint(0, 3)))
        for _ in range(count)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_two_hundred_requests_open_nothing_and_leave_nothing(tiny_bundle: Path, styles: Path, tmp_path: Path) -> None:
    prompts = random_prompts(200)
    command = [
        sys.executable,
        "-c",
        REQUESTS,
        str(tiny_bundle),
        str(styles),
        json.dumps(prompts),
        str(tmp_path / "a.png"),
    ]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(told["sessions"]) == {3}, "text encoder, UNet and VAE decoder, opened by the first request"
    assert told["sizes"][-1] - told["sizes"][19] <= 16 << 20


def test_results_after_many_requests_equal_those_of_fresh_engines(
    engine: Engine, tiny_bundle: Path, styles: Path
) -> None:
    prompts = random_prompts(30)
    for prompt in prompts:
        engine.generate(prompt, seed=1, steps=2)
    for prompt in prompts[::10]:
        [used] = engine.generate(prompt, seed=1, steps=2)
        scope = engine.info["graphs"]["unet"]  # graphs of different scopes round differently
        [fresh] = Engine.open(tiny_bundle, lora_dir=styles, threads=1, slots=scope).generate(prompt, seed=1, steps=2)
        assert np.array_equal(pixels(used), pixels(fresh))


BLOCKED = """
import sys
import weakref
from functools import partial
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "peft", "onnx", "safetensors"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Wall())
import lora_edge
engine = lora_edge.Engine.open(sys.argv[1], lora_dir=sys.argv[2], threads=1)
engine.generate("a red apple <lora:ink:0.8>", seed=11, steps=3)[0].save(sys.argv[3])
"""


def test_the_runtime_makes_the_same_image_with_torch_blocked(
    engine: Engine, tiny_bundle: Path, styles: Path, tmp_path: Path
) -> None:
    path = tmp_path / "blocked.png"
    command = [sys.executable, "-c", BLOCKED, str(tiny_bundle), str(styles), str(path)]
    subprocess.run(command, check=True)
    [ours] = engine.generate("a red apple <lora:ink:0.8>", seed=11, steps=3)
    assert np.array_equal(pixels(ours), pixels(Image.open(path)))


def test_importing_the_runtime_imports_no_training_library() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import lora_edge; lora_edge.Engine"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in told.splitlines()}
    assert "onnxruntime" in imported
    assert not imported & {"torch", "diffusers", "transformers", "peft", "onnx", "typer"}


def test_a_swap_back_reads_no_file(engine: Engine) -> None:
    prompts = [PROMPT + "<lora:ink:0.8>", PROMPT + "<lora:fog:1><lora:glow:0.4>"]
    for prompt in prompts:
        engine.generate(prompt, steps=1, seed=0)
    watching, opened = [True], []
    sys.addaudithook(lambda event, args: opened.append(args[0]) if watching and event == "open" else None)
    for prompt in prompts:
        engine.generate(prompt, steps=1, seed=0)
    watching.clear()
    assert not opened


def test_info_says_what_runs(engine: Engine) -> None:
    engine.generate(PROMPT, steps=1)
    info = engine.info
    assert info["backend"] == "onnxruntime" and info["providers"] == ["CPUExecutionProvider"] and info["why"]
    assert info["slots"] == {"text_encoder": 12, "unet": 83}
    assert info["memory"]["weights"] > 3_000_000


def test_the_shelf_puts_the_least_recently_used_back() -> None:
    made: list[str] = []

    def make(name: str, size: int) -> tuple[str, int]:
        made.append(name)
        return name, size

    shelf: Shelf[tuple[str, int]] = Shelf(10, lambda item: item[1])
    for name in ("a", "b", "a", "c", "a", "b"):
        shelf.take(name, partial(make, name, 4))
    assert made == ["a", "b", "c", "b"] and len(shelf) == 2 and shelf.nbytes == 8
    shelf.take("large", partial(make, "large", 99))
    assert len(shelf) == 1, "what is larger than the shelf is held alone"


def test_mixes_do_not_keep_adapters_that_the_shelf_put_back(tiny_bundle: Path, styles: Path) -> None:
    """Adapters in memory stay within what shelf and mixes may hold, however many files are used."""
    engine = Engine.open(tiny_bundle, lora_dir=styles, adapter_bytes=1)
    engine._swap._mixes.capacity = 1
    watched = [weakref.ref(engine.load_adapter(styles / "ink.safetensors"))]
    for name in ("ink", "glow", "fog"):
        engine.generate(f"{PROMPT}<lora:{name}:1>", steps=1, seed=0)
    gc.collect()
    assert watched[0]() is None


def test_what_is_held_of_styles_is_told_and_stays_within_bounds(tiny_bundle: Path, styles: Path) -> None:
    held = {}
    for room in (None, 0):
        engine = Engine.open(tiny_bundle, lora_dir=styles, held_bytes=room)
        told = [engine.info["memory"]["held"]]
        for name in ("ink", "fog", "ink"):
            engine.generate(f"{PROMPT}<lora:{name}:1>", steps=1, seed=0)
            told.append(engine.info["memory"]["held"])
        held[room] = told
    assert held[None][0] == 0 < held[None][1] < held[None][2] == held[None][3]
    assert held[0][1] == held[0][3] < held[None][2], "the last style's alone"
