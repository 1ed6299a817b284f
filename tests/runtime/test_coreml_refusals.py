"""Every refusal of manifests, backends and adapters that Core ML packages cannot take, and what is done on request."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.errors import (
    AdapterMismatch,
    BackendUnavailable,
    BundleDamaged,
    BundleNotFound,
    BundleVersionError,
    ComponentMissing,
    RankTooLarge,
)
from lora_edge.runtime.coreml.manifest import Packages
from lora_edge.runtime.engine import Engine

from . import standin

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
LAYER = f"lora_unet_{QUERY.replace('.', '_')}"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def packaged(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with packages of rank 4 that nothing opens; 3x3 convolutions take no adapters."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    standin.write(folder, standin.manifest(Bundle.open(folder), 4))
    return folder


def test_backends_that_are_not_here_are_refused(packaged: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BundleNotFound, match="--target coreml"):
        Engine.open(tiny_bundle, backend="mil-reference")
    with pytest.raises(BackendUnavailable, match="mil-reference computes in numpy and has no CPU_AND_NE"):
        Engine.open(packaged, backend="mil-reference", providers=["CPU_AND_NE"])
    if sys.platform != "darwin":
        with pytest.raises(BackendUnavailable, match="runs on macOS, and this is .*; mil-reference computes the same"):
            Engine.open(packaged, backend="coreml")
    assert Engine.open(packaged).info["backend"] == "onnxruntime", "auto is as it was"


Change = Callable[[dict[str, Any]], object]
UNET = ("components", "unet")


def at(told: dict[str, Any], *path: str) -> Any:
    for name in path:
        told = told[name]
    return told


MANIFESTS: dict[str, tuple[type[Exception], str, Change]] = {
    "version": (BundleVersionError, "with format 9", lambda told: told.update(format=9)),
    "bundle": (BundleDamaged, "was made for another bundle", lambda told: told.update(fingerprint="0")),
    "entry": (BundleDamaged, "lacks or misspells an entry: KeyError.'rank'", lambda told: told.pop("rank")),
    "rank": (BundleDamaged, "rank 0, latent 16 x 16", lambda told: told.update(rank=0)),
    "huge": (BundleDamaged, "rank 1000000000, latent", lambda told: told.update(rank=10**9)),
    "rows": (
        BundleDamaged,
        r"the shape \[0, 4, 16, 16\]",
        lambda told: at(told, *UNET, "ports", "Unet.mlpackage")["inputs"][0].update(shape=[0, 4, 16, 16]),
    ),
    "dtype": (
        BundleDamaged,
        "misspells an entry: KeyError.'bf16'",
        lambda told: at(told, *UNET, "ports", "Unet.mlpackage")["inputs"][0].update(dtype="bf16"),
    ),
    "outside": (
        BundleDamaged,
        "names the package '../unet', which lies outside",
        lambda told: at(told, *UNET).update(packages=["../unet"], ports={"../unet": {}}),
    ),
    "missing": (
        BundleDamaged,
        r"lacks Gone\.mlpackage",
        lambda told: at(told, *UNET).update(packages=["Gone.mlpackage"], ports={"Gone.mlpackage": {}}),
    ),
    "none": (BundleDamaged, "a component without packages", lambda told: at(told, *UNET).update(packages=[])),
    "slot": (
        BundleDamaged,
        "unet has a slot 'strange', which the bundle has not",
        lambda told: at(told, *UNET, "slots").update(strange=at(told, *UNET, "slots", QUERY)),
    ),
    "shape": (
        BundleDamaged,
        f"gives {QUERY} the shapes .32, 5. and .4, 32., which do not fit it",
        lambda told: at(told, *UNET, "slots", QUERY).update(down_shape=[32, 5]),
    ),
    "port": (
        BundleDamaged,
        "has no optional input 'other' of shape .32, 4.",
        lambda told: at(told, *UNET, "slots", QUERY).update(down="other"),
    ),
    "scale": (BundleDamaged, "has no input 'other' of shape .4.", lambda told: at(told, *UNET).update(scale="other")),
}


@pytest.mark.parametrize("fault", MANIFESTS)
def test_manifests_are_not_trusted(fault: str, packaged: Path) -> None:
    kind, sentence, change = MANIFESTS[fault]
    path = packaged / "coreml" / "lora_edge_coreml.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(kind, match=sentence) as caught:
        Packages.open(Bundle.open(packaged))
    assert type(caught.value) is kind and "export" in str(caught.value)


def test_a_plain_text_encoder_stands_in(packaged: Path) -> None:
    path = packaged / "coreml" / "lora_edge_coreml.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["components"]["text_encoder_plain"] = {**told["components"].pop("text_encoder"), "slots": {}, "scale": None}
    path.write_text(json.dumps(told), encoding="utf-8")
    packages = Packages.open(Bundle.open(packaged))
    assert packages.component("text_encoder").scale is None
    with pytest.raises(ComponentMissing, match="the Core ML packages have no vae_encoder; they have unet, vae_decoder"):
        packages.component("vae_encoder")


def lora(module: str, shape: tuple[int, ...], rank: int) -> dict[str, Array]:
    down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
    random = np.random.default_rng(0)
    return {
        f"{module}.lora_down.weight": random.standard_normal(down).astype(np.float32),
        f"{module}.lora_up.weight": random.standard_normal(up).astype(np.float32),
    }


IA3 = {f"{LAYER}.weight": np.ones(32, np.float32), f"{LAYER}.on_input": np.zeros((), np.float32)}
FILES: dict[str, tuple[type[Exception], str, dict[str, Array]]] = {
    "rank": (RankTooLarge, "unet: x takes 6 lanes where the Core ML packages have 4; export", lora(LAYER, (32, 32), 6)),
    "gains": (
        AdapterMismatch,
        f"x has in the unet: gains on {QUERY}, which the .* no inputs for; make a LoRA .* `lora-edge resize --bundle`",
        IA3,
    ),
    "norms": (
        AdapterMismatch,
        r"changes of norms on down_blocks\.0\.attentions\.0\.norm, which",
        {"lora_unet_down_blocks_0_attentions_0_norm.w_norm": np.ones(32, np.float32)},
    ),
    "convolutions": (
        AdapterMismatch,
        r"lanes on down_blocks\.0\.resnets\.0\.conv1, convolutions .* export with --conv-slots",
        lora(CONV, (32, 32, 3, 3), 2),
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_what_packages_cannot_take_of_a_file_is_refused(fault: str, packaged: Path, tmp_path: Path) -> None:
    kind, sentence, tensors = FILES[fault]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(kind, match=sentence):
        Engine.open(packaged, backend="mil-reference").load_adapter(tmp_path / "x.safetensors")
    other = Engine.open(packaged).load_adapter(tmp_path / "x.safetensors")
    engine = Engine.open(packaged, backend="mil-reference")
    with pytest.raises(kind, match=sentence):
        engine.feeds("unet", [(other, 1.0)])


def test_or_left_out_and_reported(packaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine.open(packaged, backend="mil-reference")
    save_file({**lora(LAYER, (32, 32), 2), **lora(CONV, (32, 32, 3, 3), 2)}, tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING, "lora_edge"):
        adapter = engine.load_adapter(tmp_path / "x.safetensors", strict=False)
    assert list(adapter.components["unet"].slots) == [QUERY]
    [warning] = adapter.report.warnings
    assert re.match(r"left out of the unet: lanes on down_blocks\.0\.resnets\.0\.conv1, convolutions", warning)
    assert warning in caplog.text
    save_file(IA3, tmp_path / "y.safetensors")
    with pytest.raises(AdapterMismatch, match="y changes nothing that the Core ML packages have: left out of the unet"):
        engine.load_adapter(tmp_path / "y.safetensors", strict=False)


def test_or_cut_when_it_is_loaded(packaged: Path, tmp_path: Path) -> None:
    engine = Engine.open(packaged, backend="mil-reference", fit_rank=True)
    tensors = lora(LAYER, (32, 32), 6)
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = engine.load_adapter(tmp_path / "x.safetensors")
    up, down = tensors[f"{LAYER}.lora_up.weight"], tensors[f"{LAYER}.lora_down.weight"]
    squares = np.linalg.svd(up.astype(float) @ down, compute_uv=False) ** 2
    share = 100 * squares[4:].sum() / squares.sum()
    [warning] = adapter.report.warnings
    assert warning == f"unet: 6 lanes are cut to 4, which loses {share:.2g} % of its energy"
    feeds = engine.feeds("unet", [(adapter, 1.0)])
    pair = [feeds[f"{QUERY.replace('.', '_')}_{leaf}"] for leaf in ("down", "up")]
    assert np.square(pair[0] @ pair[1] - (up @ down).T).sum() == pytest.approx(squares[4:].sum(), rel=1e-3)
