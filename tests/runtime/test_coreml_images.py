"""Whole images through real packages, computed operation by operation in half precision, against the ONNX graphs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.bundle import Bundle
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.write import write
from lora_edge.pack import write_pack
from lora_edge.runtime.conditioning import FINAL_NORM
from lora_edge.runtime.engine import Engine

LEAST = 40  # dB, over 4 steps
PROMPT = {"prompt": "a cat", "seed": 5, "steps": 4}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model with packages of rank 16; convolutions take adapters."""
    made: Path = tmp_path_factory.mktemp("coreml") / "tiny"
    shutil.copytree(tiny_bundle, made)
    bundle = Bundle.open(made)
    tables = {name: component.table for name, component in bundle.components.items()}
    options = Options(rank=16, conv_slots=True)
    write(Checkpoint.open(tiny_model), made, tables, bundle.fingerprint, options, lambda _: None, lambda *_: None)
    return made


@pytest.fixture(scope="module")
def packaged(folder: Path, styles: Path) -> Engine:
    return Engine.open(folder, backend="mil-reference", lora_dir=styles)


@pytest.fixture(scope="module")
def packs(tiny_bundle: Path, engine: Engine, styles: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """`ink` and `glow` packed once, for whichever backend."""
    target = tmp_path_factory.mktemp("packs")
    adapters = [engine.load_adapter(styles / name) for name in ("ink.safetensors", "deep/glow.safetensors")]
    return [write_pack(adapter, engine.bundle, target / f"{adapter.name}.pack.safetensors") for adapter in adapters]


def psnr(ours: Any, theirs: Any) -> float:
    """Peak signal to noise in dB."""
    return float(10 * np.log10(255**2 / np.mean((np.asarray(ours, float) - np.asarray(theirs, float)) ** 2)))


@pytest.mark.parametrize("multipliers", [[], [1.5], [1.2, -0.8]], ids=["none", "one", "two"])
def test_images_of_packages_equal_those_of_graphs(
    packaged: Engine, engine: Engine, packs: list[Path], multipliers: list[float]
) -> None:
    made = [
        one.generate(**PROMPT, adapters=[(one.load_adapter(p), m) for p, m in zip(packs, multipliers, strict=False)])[0]
        for one in (packaged, engine)
    ]
    assert psnr(*made) >= LEAST
    if multipliers:
        [plain] = engine.generate(**PROMPT)
        assert psnr(*made) >= psnr(plain, made[1]) + 15, "the error is small beside what the adapters change"


def test_packages_take_what_graphs_take(packaged: Engine, engine: Engine, styles: Path) -> None:
    """Clip skip, emphasis and a schedule of multipliers."""
    prompt = "a (cat:1.2) <lora:ink:1@0,0.2@0.8>"
    made = [one.generate(prompt, seed=6, steps=4, clip_skip=2)[0] for one in (packaged, engine)]
    assert psnr(*made) >= LEAST


def test_single_components_run(packaged: Engine, engine: Engine, packs: list[Path]) -> None:
    noise = np.random.default_rng(0)
    ids = noise.integers(0, 512, (2, 77))
    ours, theirs = (
        one.run("text_encoder", {"input_ids": ids}, [(one.load_adapter(packs[0]), 0.6)]) for one in (packaged, engine)
    )
    assert ours.keys() == {"last_hidden_state", "pooler_output", "normed_states.1"}
    norms = engine.bundle.component("text_encoder").norms()
    final = [torch.from_numpy(norms[f"{FINAL_NORM}.{leaf}"]).float() for leaf in ("weight", "bias")]
    raw = torch.from_numpy(theirs["hidden_states.1"])
    wanted = theirs | {"normed_states.1": torch.nn.functional.layer_norm(raw, raw.shape[-1:], *final).numpy()}
    for name, array in ours.items():
        assert array.shape == wanted[name].shape and array.dtype == np.float32
        np.testing.assert_allclose(array, wanted[name], atol=1e-2)
    pixels = noise.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    ours, theirs = (one.run("vae_encoder", {"sample": pixels}) for one in (packaged, engine))
    np.testing.assert_allclose(ours["latent_parameters"], theirs["latent_parameters"], atol=5e-2)
