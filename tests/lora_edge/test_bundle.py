"""Opening a bundle without trusting it: each refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_edge import errors
from lora_edge.bundle import MANIFEST, Bundle

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
        (lambda m: m["components"]["unet"]["slots"][0].pop("in"), errors.BundleDamaged, "KeyError"),
    ],
)
def test_manifests_that_are_refused(copy: Path, change: Change, error: type[Exception], words: str) -> None:
    edit(copy, change)
    with pytest.raises(error, match=words):
        Bundle.open(copy)


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
