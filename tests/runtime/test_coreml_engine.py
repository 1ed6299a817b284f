"""Whole images through packages: the layout and the translation, exact against the bundle's own graphs."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_edge
from lora_edge import Multiplier
from lora_edge.bundle import Bundle
from lora_edge.errors import RankTooLarge, RequestError
from lora_edge.runtime import backends
from lora_edge.runtime.engine import Engine

from . import standin

RANK = 12
PROMPT = {"seed": 5, "steps": 3}


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model with packages that stand-ins run; convolutions take adapters."""
    made = tmp_path_factory.mktemp("packaged") / "tiny"
    shutil.copytree(tiny_bundle, made)
    standin.write(made, standin.manifest(Bundle.open(made), RANK, conv_slots=True))
    return made


@pytest.fixture
def packaged(folder: Path, styles: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(backends, "ReferencePackage", standin.StandIn)
    return Engine.open(folder, backend="mil-reference", lora_dir=styles)


def error(ours: Any, theirs: Any) -> float:
    """Mean squared, in grey levels."""
    return float(np.mean((np.asarray(ours, float) - np.asarray(theirs, float)) ** 2))


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        "a cat <lora:ink:0.8>",
        "a cat <lora:ink:0.8><lora:glow:-0.4>",
        "a cat <lora:ink:1@0,0@0.5>",
        "a (cat:1.3) <lora:ink:0.8:lbw=ALL:stop=2> AND a dog :0.7",
        "a cat <lora:ink:1:0.5:lbw=1,0,0.5,1,1,1,1,0.2,1,1,1,2,1,1,0.5,1,1>",
    ],
)
def test_images_equal_those_of_the_bundles_own_graphs(packaged: Engine, engine: Engine, prompt: str) -> None:
    [ours], [theirs] = packaged.generate(prompt, **PROMPT), engine.generate(prompt, **PROMPT)
    assert error(ours, theirs) <= 255**2 / 10**5, "at least 50 dB"
    assert ours.info["parameters"] == theirs.info["parameters"]


def test_images_with_other_multipliers_run_apart(
    packaged: Engine, engine: Engine, styles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["a cat <lora:ink:0.8>", "a dog <lora:ink:0.3>", "a fox <lora:ink:0.8>", "a hen"]
    with caplog.at_level(logging.WARNING, "lora_edge"):
        ours = packaged.generate(prompts, **PROMPT)
    assert packaged.info["runs"] == ["images 1, 3", "images 2", "images 4"]
    assert "a Core ML package takes one set at a time: made apart are images 1, 3;" in caplog.text
    for one, other in zip(ours, engine.generate(prompts, **PROMPT), strict=True):
        assert error(one, other) <= 255**2 / 10**5
    packaged.generate(["a cat <lora:ink:0.8>", "a dog <lora:ink:0.8>"], **PROMPT)
    assert packaged.info["runs"] == ["images 1, 2"]


def test_batches_run_in_pairs(packaged: Engine, engine: Engine) -> None:
    """Five rows are three runs, the last one filled up; nothing depends on what fills it."""
    noise = np.random.default_rng(0)
    inputs = {
        "sample": noise.standard_normal((5, 4, 16, 16)).astype(np.float32),
        "timestep": 301,
        "encoder_hidden_states": noise.standard_normal((5, 77, 64)).astype(np.float32),
    }
    ours, theirs = (one.run("unet", inputs)["out_sample"] for one in (packaged, engine))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    graph: Any = packaged._components.graph("unet")
    runs = graph._stages[0][1].fed
    assert len(runs) == 3 and all(run["sample"].shape == (2, 4, 16, 16) for run in runs)
    np.testing.assert_array_equal(runs[2]["sample"][0], runs[2]["sample"][1])


def test_a_multiplier_moves_one_number_per_lane(packaged: Engine, styles: Path) -> None:
    """Also where it moves from step to step, and with block weights, which lie in `up`."""
    ink = packaged.load_adapter(styles / "ink.safetensors")
    blocks = lora_edge.prompt.parse("<lora:ink:1:lbw=ALL0.5>").calls[0].multiplier.blocks
    first = packaged.feeds("unet", [(ink, Multiplier(0.1, blocks=blocks))])
    assert packaged.info["bytes_copied"]["unet"] > 4 * RANK
    for number in np.linspace(0.2, 2, 5):
        feeds = packaged.feeds("unet", [(ink, Multiplier(float(number), blocks=blocks))])
        assert [name for name in feeds if feeds[name] is not first[name]] == ["lora_scale"]
        assert packaged.info["bytes_copied"]["unet"] == 4 * RANK
    assert packaged.feeds("unet", [(ink, 1.0), (ink, -1.0)]) == {}, "off"
    twice = packaged.feeds("unet", [(ink, 1.0), (ink, Multiplier(1.0, blocks=blocks))])
    assert np.count_nonzero(twice["lora_scale"]) == 8, "block weights of two sorts take lanes of their own"


def test_it_tells_what_runs(packaged: Engine, folder: Path) -> None:
    info = packaged.info
    assert (info["backend"], info["providers"], info["rank"]) == ("mil-reference", ["numpy"], RANK)
    assert info["packages"]["unet"] == ["Unet.mlpackage"] and info["precision"] == "fp32"


def test_what_packages_cannot_do_is_refused_before_the_first_step(packaged: Engine, styles: Path) -> None:
    with pytest.raises(RequestError, match="width 128 is not the 64 that these graphs were made for"):
        packaged.generate("a cat", width=128)
    with pytest.raises(
        RequestError, match=r"unet\.sample has the shape \[1, 4, 8, 8\]; it must be \[rows, 4, 16, 16\]"
    ):
        packaged.run(
            "unet", {"sample": np.zeros((1, 4, 8, 8)), "timestep": 1, "encoder_hidden_states": np.zeros((1, 77, 64))}
        )
    with pytest.raises(RequestError, match="the prompts take 154 tokens where the Core ML package reads 77: keep"):
        packaged.generate("a cat BREAK a dog", **PROMPT)
    with pytest.raises(RequestError, match="this text encoder gives its last layer alone; leave clip skip at 1"):
        packaged.generate("a cat", clip_skip=2, **PROMPT)
    ink = packaged.load_adapter(styles / "ink.safetensors")
    with pytest.raises(RequestError, match="one multiplier per adapter for a whole run"):
        packaged.feeds("unet", [(ink, [0.5, 0.6])])
    assert packaged.feeds("unet", [(ink, [0.5, 0.5])])["lora_scale"][0] == 0.5
    fog, glow = (packaged.load_adapter(styles / name) for name in ("fog", "deep/glow.safetensors"))
    with pytest.raises(
        RankTooLarge, match="ink takes 4 and glow takes 5 and fog takes 6 lanes, 15 together, .* have 12"
    ):
        packaged.generate("a cat", adapters=[(ink, 1), (glow, 1), (fog, 1)], **PROMPT)
    with pytest.raises(RequestError, match="not one finite number per row"):
        packaged.feeds("unet", [(ink, [])])


def test_a_mix_is_cut_to_fit_on_request(
    folder: Path, styles: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "ReferencePackage", standin.StandIn)
    fitting = Engine.open(folder, backend="mil-reference", lora_dir=styles, fit_rank=True)
    with caplog.at_level(logging.WARNING, "lora_edge"):
        [ours] = fitting.generate("a cat <lora:ink:0.5><lora:glow:0.5><lora:fog:0.5>", **PROMPT)
    assert "lanes are cut to" in caplog.text and "% of its energy" in caplog.text
    [theirs] = engine.generate("a cat <lora:ink:0.5><lora:glow:0.5><lora:fog:0.5>", **PROMPT)
    [plain] = engine.generate("a cat", **PROMPT)
    assert error(ours, theirs) < error(plain, theirs)
