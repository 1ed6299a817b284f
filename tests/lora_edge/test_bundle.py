"""Opening a bundle without trusting it: each refusal."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_edge import errors
from lora_edge.baseweights import BaseWeights
from lora_edge.bundle import MANIFEST, Bundle
from lora_edge.graphweights import GraphWeights
from lora_edge.slots import Slot, SlotTable

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def edit(folder: Path, change: Change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def entry(path: str) -> dict[str, Any]:
    return {path: {"size": 0, "sha256": ""}}


def graphs(change: Change) -> Change:
    """A change of what the manifest says of the UNet's graphs."""
    return lambda manifest: change(manifest["components"]["unet"]["graphs"])


def parts(change: Change) -> Change:
    """A change of what the manifest says of the UNet's graphs in parts."""
    return lambda manifest: change(manifest["components"]["unet"]["parts"]["openvino"])


def earlier(once: str) -> Change:
    """Parts as bundles told them when there were two."""

    def change(manifest: dict[str, Any]) -> None:
        unet = manifest["components"]["unet"]
        unet["halves"] = {"openvino": {"linear": {once: unet["parts"]["openvino"]["linear"][-1], "step": "../x.onnx"}}}
        del unet["parts"]

    return change


def weights(change: Change) -> Change:
    """A change of what the manifest says of the UNet's weights."""
    return lambda manifest: change(manifest["components"]["unet"]["weights"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m.update(abi=2), errors.BundleVersionError, "with abi 2; this version reads 1"),
        (lambda m: m.update(format=9), errors.BundleVersionError, "with format 9"),
        (lambda m: m.pop("abi"), errors.BundleVersionError, "with abi None"),
        (lambda m: m.pop("components"), errors.BundleDamaged, "lacks or misspells an entry: KeyError"),
        (lambda m: m.update(files=[1]), errors.BundleDamaged, "lacks or misspells"),
        (lambda m: m["files"].update(entry("../secret")), errors.BundleDamaged, "lies outside the bundle"),
        (lambda m: m["files"].update(entry("/etc/passwd")), errors.BundleDamaged, "lies outside the bundle"),
        (lambda m: m["files"].update(entry("unet/gone")), errors.BundleDamaged, "lacks unet/gone"),
        (lambda m: m["components"]["unet"].update(graph="../x.onnx"), errors.BundleDamaged, "outside"),
        (graphs(lambda g: g["onnxruntime"].update(linear="../x.onnx")), errors.BundleDamaged, "outside"),
        (graphs(lambda g: g["onnxruntime"].update(linear="unet/gone")), errors.BundleDamaged, "lacks unet/gone"),
        (graphs(lambda g: g.update(openvino={})), errors.BundleDamaged, "KeyError\\('all'\\)"),
        (parts(lambda p: p["linear"].append("../x.onnx")), errors.BundleDamaged, "outside"),
        (parts(lambda p: p["linear"].append("unet/gone")), errors.BundleDamaged, "lacks unet/gone"),
        (parts(lambda p: p["linear"].append(1)), errors.BundleDamaged, "lacks or misspells"),
        (earlier("once"), errors.BundleDamaged, "outside"),
        (earlier("twice"), errors.BundleDamaged, "KeyError\\('once'\\)"),
        (parts(lambda p: p.update(linear=1)), errors.BundleDamaged, "lacks or misspells"),
        (graphs(lambda g: g.update(openvino=1)), errors.BundleDamaged, "lacks or misspells"),
        (lambda m: m["components"]["unet"]["slots"][0].pop("in"), errors.BundleDamaged, "KeyError"),
        (weights(lambda w: w.update(file="../x")), errors.BundleDamaged, "lies outside the bundle"),
        (weights(lambda w: w.update(file="unet/gone")), errors.BundleDamaged, "should lie, is missing"),
        (weights(lambda w: w["tensors"].pop("conv_in")), errors.BundleDamaged, "KeyError\\('conv_in'\\)"),
        (weights(lambda w: w["biases"].pop("conv_in")), errors.BundleDamaged, "KeyError"),
        (weights(lambda w: w["tensors"]["conv_in"].update(dtype="I64")), errors.BundleDamaged, "KeyError\\('I64'"),
        (weights(lambda w: w["tensors"]["conv_in"].update(offset=-1)), errors.BundleDamaged, "at -1; export it"),
        (weights(lambda w: w["tensors"]["conv_in"].update(offset=2**40)), errors.BundleDamaged, "within the"),
        (weights(lambda w: w["tensors"]["conv_in"].update(shape=[32, 4])), errors.BundleDamaged, r"\[32, 4, 3, 3\]"),
        (weights(lambda w: w["biases"]["conv_in"].update(shape=[31])), errors.BundleDamaged, r"biases \[32\]"),
    ],
)
def test_manifests_that_are_refused(copy: Path, change: Change, error: type[Exception], words: str) -> None:
    edit(copy, change)
    with pytest.raises(error, match=words):
        Bundle.open(copy)


def test_bundles_of_before_have_one_graph(copy: Path) -> None:
    edit(copy, lambda m: [entry.pop("graphs") for entry in m["components"].values()])
    unet = Bundle.open(copy).component("unet")
    assert unet.graphs == {"onnxruntime": {"all": unet.graph}}


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleNotFound, match="is not a bundle"):
        Bundle.open(tmp_path)
    (tmp_path / MANIFEST).write_text("[", encoding="utf-8")
    with pytest.raises(errors.BundleDamaged, match="cannot be read as JSON"):
        Bundle.open(tmp_path)
    (tmp_path / MANIFEST).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(errors.BundleDamaged, match="cannot be read as JSON"):
        Bundle.open(tmp_path)
    (tmp_path / MANIFEST).write_text("[1]", encoding="utf-8")
    with pytest.raises(errors.BundleDamaged, match="not a JSON object"):
        Bundle.open(tmp_path)


def test_truncated_and_changed_files(copy: Path) -> None:
    weights = copy / "unet" / "model.onnx.data"
    held = bytearray(weights.read_bytes())
    weights.write_bytes(held[:-1])
    with pytest.raises(errors.BundleDamaged, match=r"model\.onnx\.data has \d+ bytes and should have \d+"):
        Bundle.open(copy)
    held[1000] ^= 1
    weights.write_bytes(held)
    bundle = Bundle.open(copy)
    with pytest.raises(errors.BundleDamaged, match="was changed after the export"):
        Bundle.open(copy, check="full")
    with pytest.raises(errors.BundleDamaged, match="was changed after the export"):
        for path in bundle.manifest["files"]:
            bundle.verify(path)


def test_a_link_that_leaves_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    weights = copy / "unet" / "model.onnx.data"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.BundleDamaged, match="lies outside the bundle"):
        Bundle.open(copy)


def test_the_fingerprint_is_of_graphs_and_weights(copy: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(copy)
    assert bundle.fingerprint == Bundle.open(tiny_bundle).fingerprint
    assert len(bundle.fingerprint) == 64


MODULES = {"unet": "unet/diffusion_pytorch_model.safetensors", "text_encoder": "text_encoder/model.safetensors"}


@pytest.mark.parametrize("component", MODULES)
def test_weights_and_biases_of_every_slot_are_those_of_torch(
    tiny_bundle: Path, tiny_model: Path, component: str
) -> None:
    bundle = Bundle.open(tiny_bundle)
    base: BaseWeights = bundle
    state = {
        name.removeprefix("text_model."): value for name, value in load_file(tiny_model / MODULES[component]).items()
    }
    layers = {name for name, value in state.items() if value.ndim > 1 and not name.endswith("_embedding.weight")}
    for slot in bundle.component(component).table:
        name = slot.name.removeprefix("text_model.")
        weight, bias = base.weight(component, slot.name), base.bias(component, slot.name)
        assert weight.dtype == np.float32 and weight.shape == slot.weight_shape and weight.flags.c_contiguous
        assert np.array_equal(weight, state[f"{name}.weight"])
        assert (bias is not None) == slot.has_bias == (f"{name}.bias" in state)
        assert bias is None or np.array_equal(bias, state[f"{name}.bias"])
        layers.remove(f"{name}.weight")
    assert not layers


def test_a_bundle_of_before_does_not_tell_its_weights(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["components"]["unet"].pop("weights"))
    with pytest.raises(errors.BundleVersionError, match="where the weights of its unet lie, .*; export it again"):
        Bundle.open(copy).weight("unet", "conv_in")


def test_weights_that_are_cut_while_they_are_in_use(copy: Path) -> None:
    bundle = Bundle.open(copy)
    os.truncate(copy / "unet" / "model.onnx.data", 4096)
    with pytest.raises(errors.BundleDamaged, match="was cut while it was in use"):
        bundle.weight("unet", "conv_out")
    (copy / "unet" / "model.onnx.data").unlink()
    with pytest.raises(errors.BundleDamaged, match="cannot be read"):
        bundle.bias("unet", "conv_out")


@pytest.mark.parametrize("transposed", [True, False])
def test_half_precision_is_read_as_float32(tmp_path: Path, transposed: bool) -> None:
    table = SlotTable("unet", (Slot("a", 3, 2, has_bias=False),))
    weight = np.arange(6, dtype=np.float16).reshape(2, 3) / 7
    lying = np.ascontiguousarray(weight.T if transposed else weight)
    (tmp_path / "data").write_bytes(b"\0\0" + lying.tobytes())
    place = {"offset": 2, "dtype": "F16", "shape": list(lying.shape), "transposed": transposed}
    told = GraphWeights.parse({"tensors": {"a": place}, "biases": {}}, tmp_path / "data", table)
    assert told.weight("a").dtype == np.float32 and np.array_equal(told.weight("a"), weight.astype(np.float32))
    assert told.bias("a") is None
