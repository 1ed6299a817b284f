"""The torch backend beyond the contract that all backends share: devices, precisions, whole images, refusals."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_edge import errors
from lora_edge.bundle import Bundle
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.programparts import Parts, open_parts, program_of
from lora_edge.runtime.torchprogram import TorchGraph, check_device
from lora_edge.runtime.torchslots import Carrier

PROMPT = "a red apple <lora:ink:0.6><lora:glow:0.4>"


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def parts(bundle: Bundle) -> Callable[[str], Parts]:
    def opened(name: str) -> Parts:
        component = bundle.component(name)
        return open_parts(component.graph, program_of(bundle, component), component.table)

    return opened


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((2, 4, 16, 24)).astype(np.float32),
        "timestep": np.array([981.0], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 64)).astype(np.float32),
    }


def test_images_are_those_of_onnxruntime(engine: Engine, tiny_bundle: Path, styles: Path) -> None:
    ours = Engine.open(tiny_bundle, "torch", styles, providers=["cpu"], threads=1)
    settings = {"seed": 3, "steps": 6, "width": 96, "height": 64}
    for prompt in (PROMPT, "a red apple"):
        assert psnr(ours.generate(prompt, **settings)[0], engine.generate(prompt, **settings)[0]) >= 60
    each = [[("ink", 1.0)], [("glow", 0.5)], []]
    loaded = {name: styles / path for name, path in (("ink", "ink.safetensors"), ("glow", "deep/glow.safetensors"))}
    made = [
        one.generate(
            "a red apple",
            batch=3,
            adapters=[[(one.load_adapter(loaded[name]), m) for name, m in pairs] for pairs in each],
            **settings,
        )
        for one in (ours, engine)
    ]
    assert min(map(psnr, *made)) >= 60
    assert ours.info["backend"] == "torch" and ours.info["providers"] == ["cpu"]
    assert ours.info["precision"] == "fp32" and ours.info["sessions_opened"] == 3


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 1e-2), ("bf16", 5e-2)])
def test_half_precision_keeps_the_effect_of_an_adapter(
    tiny_bundle: Path, styles: Path, plain: dict[str, np.ndarray], precision: str, bound: float
) -> None:
    made = {}
    for name in ("fp32", precision):
        one = Engine.open(tiny_bundle, "torch", providers=["cpu"], precision=name)
        ink = one.load_adapter(styles / "ink.safetensors")
        base, changed = (one.run("unet", plain, adapters)["out_sample"] for adapters in ([], [(ink, 1.0)]))
        assert base.dtype == changed.dtype == np.float32
        text = one.run("text_encoder", {"input_ids": np.arange(77)[None]}, [(ink, 1.0)])["last_hidden_state"]
        image = one.run("vae_decoder", {"latent_sample": plain["sample"]})["sample"]
        made[name] = (base, changed, text, image)
    for whole, half in zip(made["fp32"], made[precision], strict=True):
        assert np.abs(whole - half).max() <= bound * np.abs(whole).max()
    effects = [changed - base for base, changed, *_ in made.values()]
    assert np.abs(effects[0] - effects[1]).max() <= 4 * bound * np.abs(effects[0]).max()


def test_nothing_stays_behind_on_the_cpu(parts: Callable[[str], Parts], plain: dict[str, np.ndarray]) -> None:
    """torch's device for shapes refuses a tensor that is elsewhere; only the result cannot be taken from it."""
    given = {"unet": plain, "text_encoder": {"input_ids": np.array([[512, 7, 514, 513]])}}
    for name, feeds in given.items():
        graph = TorchGraph(parts(name), "meta")
        slots = parts(name).table.slots
        ranks = np.array([2] * len(slots))
        more = {"lora.ranks": ranks, "lora.scales": np.ones((1, ranks.sum()), np.float32)}
        for slot in slots:
            more[slot.port("down")] = np.ones((slot.patch, 2), np.float32)
            more[slot.port("up")] = np.ones((2, slot.out_features), np.float32)
            more[slot.port("gain_out")] = np.ones(slot.out_features, np.float32)
            more[slot.port("bias")] = np.ones(slot.out_features, np.float32)
        if name == "text_encoder":
            more["lora.tokens"] = np.ones((1, 64), np.float32)
        with pytest.raises(errors.GraphFailed, match="meta tensor"):
            graph.run(feeds | more)


def test_adapters_are_carried_once_and_go_with_their_arrays() -> None:
    carrier = Carrier(torch.device("cpu"), torch.float16)
    style = np.ones((3, 2), np.float32)
    style.flags.writeable = False
    first = carrier.adapter(style)
    assert carrier.adapter(style) is first and first.dtype == torch.float16
    assert len(carrier._copies) == 1
    del style
    assert not carrier._copies
    shared = np.ones((3, 2), np.float32)
    assert Carrier(torch.device("cpu"), torch.float32).adapter(shared).data_ptr() == shared.ctypes.data


def test_weights_are_pages_of_the_bundle(parts: Callable[[str], Parts]) -> None:
    opened = parts("unet")
    graph = TorchGraph(opened)
    held = {name: graph._tensors[value] for value, name in opened.program.tensors.items()}
    for slot in opened.table:
        name = f"{slot.name}.weight"
        assert held[name].data_ptr() == opened.tensors[name].ctypes.data, name
        assert isinstance(opened.tensors[name], np.memmap)


def test_wrong_feeds(parts: Callable[[str], Parts], plain: dict[str, np.ndarray]) -> None:
    graph = TorchGraph(parts("unet"))
    slot = graph._parts.table.slots[0]
    count = len(graph._parts.table)
    two = np.array([2] + [0] * (count - 1))
    down, up = np.ones((slot.patch, 2), np.float32), np.ones((2, slot.out_features), np.float32)
    ones = np.ones((1, 2), np.float32)
    lanes = {slot.port("down"): down, slot.port("up"): up, "lora.scales": ones, "lora.ranks": two}
    graph.run(plain | lanes)
    for more, words in (
        ({"sample": plain["sample"][:, :3]}, "torch refused the inputs"),
        ({"lora.x.down": down}, "has no input lora.x.down"),
        (lanes | {slot.port("up"): up[:1]}, "matrices of rank .* says 2"),
        (lanes | {"lora.scales": ones[:, :1]}, "does not cut the 1 lanes"),
        (lanes | {"lora.ranks": two[:3]}, "does not cut the 2 lanes"),
        (lanes | {slot.port("down"): down[:-1]}, "torch refused the inputs"),
    ):
        with pytest.raises(errors.GraphFailed, match=words):
            graph.run(plain | more)
    with pytest.raises(errors.GraphFailed, match="the unet needs timestep"):
        graph.run({name: array for name, array in plain.items() if name != "timestep"})
    assert np.array_equal(graph.run(plain)["out_sample"], TorchGraph(parts("unet")).run(plain)["out_sample"])


def test_refusals(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, settings in (
        ("torch runs on one of mps, cuda, cpu, and not on tpu", {"providers": ["tpu"]}),
        ("torch runs on one of mps, cuda, cpu, and not on cpu, mps", {"providers": ["cpu", "mps"]}),
        ("torch computes in one of fp32, fp16, bf16, and not in int8", {"precision": "int8"}),
    ):
        with pytest.raises(errors.BackendUnavailable, match=words):
            Engine.open(tiny_bundle, "torch", **settings)
    with pytest.raises(errors.BackendUnavailable, match="onnxruntime computes these graphs in fp32, and not in fp16"):
        Engine.open(tiny_bundle, "onnxruntime", precision="fp16")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(errors.BackendUnavailable, match="torch has no mps on this machine; it has cpu"):
        Engine.open(tiny_bundle, "torch", providers=["mps"])
    assert check_device(None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_device(None) == "cuda" and check_device(["cpu"]) == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert check_device(None) == "mps"


def test_without_torch_there_is_one_sentence_and_the_rest_works(tiny_bundle: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
from lora_edge.runtime.engine import Engine
from lora_edge.errors import BackendUnavailable
Engine.open({str(tiny_bundle)!r}).run("text_encoder", {{"input_ids": [[512, 5, 513]]}})
try:
    Engine.open({str(tiny_bundle)!r}, "torch")
except BackendUnavailable as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("the backend torch needs PyTorch: pip install 'lora-edge[torch]'")
