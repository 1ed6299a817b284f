"""The `coreml/` folder: what is in it, read by coremltools and by the evaluator, and how it compares with torch."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

import lora_edge
from lora_edge import errors, front
from lora_edge.bundle import Bundle
from lora_edge.cli import app
from lora_edge.export import verify as onnx_verify
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.coreml import verify
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.programs import Program
from lora_edge.export.coreml.write import write
from lora_edge.mil import Package, check
from lora_edge.slots import SlotTable

F16, F32, I32 = 65552, 65568, 131104  # ArrayFeatureType.ArrayDataType


@pytest.fixture(scope="session")
def manifest(coreml_bundle: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((coreml_bundle / "coreml" / "lora_edge_coreml.json").read_text(encoding="utf-8"))
    return read


def described(package: Path) -> Any:
    """What coremltools reads."""
    return coremltools.models.MLModel(str(package), skip_model_load=True).get_spec().description


def shapes(features: Any) -> dict[str, tuple[list[int], int]]:
    arrays = {feature.name: feature.type.multiArrayType for feature in features}
    return {name: (list(array.shape), array.dataType) for name, array in arrays.items()}


def test_the_folder_is_apples(coreml_bundle: Path, manifest: dict[str, Any]) -> None:
    packages = {"Unet", "TextEncoder", "TextEncoderWithAdapters", "VAEDecoder", "VAEEncoder"}
    others = {"vocab.json", "merges.txt", "compile.sh", "lora_edge_coreml.json"}
    folder = coreml_bundle / "coreml"
    assert {path.name for path in folder.iterdir()} == {f"{name}.mlpackage" for name in packages} | others
    assert set(check(folder)) == {f"{name}.mlpackage" for name in packages}
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"lora_edge_coreml.json"}
    assert subprocess.run(["sh", "-n", folder / "compile.sh"], check=False).returncode == 0
    told = {
        key: manifest[key] for key in ("format", "abi", "rank", "os", "precision", "attention", "palettize", "rows")
    }
    assert list(told.values()) == [1, 1, 16, "iOS17", "fp16", "original", None, 2]
    assert manifest["latent"] == [16, 16] and manifest["fingerprint"] == "f" * 64


def test_the_unet_takes_an_optional_pair_for_every_slot(
    coreml_bundle: Path, manifest: dict[str, Any], tables: dict[str, SlotTable]
) -> None:
    told = described(coreml_bundle / "coreml" / "Unet.mlpackage")
    entry = manifest["components"]["unet"]
    inputs = shapes(told.input)
    assert inputs.pop("sample") == ([2, 4, 16, 16], F16)
    assert inputs.pop("timestep") == ([2], F32)
    assert inputs.pop("encoder_hidden_states") == ([2, 64, 1, 77], F16)
    assert shapes(told.output) == {"noise_pred": ([2, 4, 16, 16], F32)}
    assert inputs.pop("lora_scale") == ([16], F16) and entry["scale"] == "lora_scale"
    taken = [slot for slot in tables["unet"] if slot.kernel in (None, (1, 1))]
    assert list(entry["slots"]) == [slot.name for slot in taken] and len(taken) > 50
    for slot in taken:
        down = [16, slot.in_features, 1, 1] if slot.kernel else [slot.in_features, 16]
        up = [slot.out_features, 16, 1, 1] if slot.kernel else [16, slot.out_features]
        leaves = entry["slots"][slot.name]
        assert leaves["down"] == slot.name.replace(".", "_") + "_down" and leaves["down_shape"] == down
        assert leaves["up"] == slot.name.replace(".", "_") + "_up" and leaves["up_shape"] == up
        assert inputs.pop(leaves["down"]) == (down, F16) and inputs.pop(leaves["up"]) == (up, F16)
    assert not inputs
    required = {"sample", "timestep", "encoder_hidden_states"}
    assert {feature.name for feature in told.input if not feature.type.isOptional} == required
    for feature in told.input:
        array = feature.type.multiArrayType
        kind = array.WhichOneof("defaultOptionalValue")
        assert kind == (None if feature.name in required else "floatDefaultValue")
        assert array.floatDefaultValue == (1.0 if feature.name == "lora_scale" else 0.0)


def test_the_other_packages_have_apples_names(coreml_bundle: Path, tables: dict[str, SlotTable]) -> None:
    folder = coreml_bundle / "coreml"
    plain, adapted = (described(folder / f"{name}.mlpackage") for name in ("TextEncoder", "TextEncoderWithAdapters"))
    assert shapes(plain.input) == {"input_ids": ([1, 77], F32)}, "Apple's class takes the first of the inputs"
    assert shapes(plain.output) == {"last_hidden_state": ([1, 77, 64], F32), "pooled_outputs": ([1, 64], F32)}
    assert shapes(adapted.input)["input_ids"] == ([1, 77], I32)
    assert len(adapted.input) == 2 + 2 * len(tables["text_encoder"])
    assert shapes(adapted.output) == shapes(plain.output) | {"normed_states_1": ([1, 77, 64], F32)}
    decoder, encoder = (described(folder / f"VAE{name}.mlpackage") for name in ("Decoder", "Encoder"))
    assert (shapes(decoder.input), shapes(decoder.output)) == (
        {"z": ([1, 4, 16, 16], F16)},
        {"image": ([1, 3, 64, 64], F32)},
    )
    assert (shapes(encoder.input), shapes(encoder.output)) == (
        {"x": ([1, 3, 64, 64], F16)},
        {"latent": ([1, 8, 16, 16], F32)},
    )


def test_every_component_was_compared_with_torch(manifest: dict[str, Any]) -> None:
    rows = {(row["component"], row["case"]): row for row in manifest["verification"]}
    assert len(rows) == 4 + 1 + 3 + 2
    for row in rows.values():
        assert row["error"] <= row["allowed"] <= 1e-2 * max(1, row["largest"])
        assert row["allowed"] <= 0.05 * row["effect"] or row["effect"] == 0
    early, late = (rows["unet", f"no adapter, timestep {step}"]["error"] for step in (1, 981))
    assert late < 1.5 * early, "the time embedding stays in float32"


def test_lanes_at_multiplier_0_are_the_base(coreml_bundle: Path, unet_program: Callable[[Options], Program]) -> None:
    options = Options(rank=16)
    program = unet_program(options)
    bench = verify.Bench(program, [Package.open(coreml_bundle / "coreml" / "Unet.mlpackage")], options)
    feeds = bench.feeds([bench.draw(16, np.random.default_rng(0))], [0.0])
    base, off = bench.run(program.example, {}), bench.run(program.example, feeds)
    assert np.array_equal(base["noise_pred"], off["noise_pred"])


def test_ids_of_a_real_vocabulary_survive_half_precision(tmp_path: Path) -> None:
    """CLIP has 49408 words: float16 would merge every 32 of the last, int16 would wrap."""
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(tmp_path / "model" / "text_encoder")
    table = SlotTable("text_encoder", ())
    checkpoint = Checkpoint.open(tmp_path / "model")
    write(checkpoint, tmp_path, {"text_encoder": table}, "", Options(), lambda what: None, lambda *told: None)
    package = Package.open(tmp_path / "coreml" / "TextEncoder.mlpackage")
    ids = np.full((1, 77), 49407, np.float32)
    first, second = (package.run({"input_ids": np.where(np.arange(77) == 5, word, ids)}) for word in (49001, 49002))
    change = np.abs(first["last_hidden_state"] - second["last_hidden_state"]).max(axis=(0, 2))
    assert change[5] > 0.1 and not change[:5].any()


def test_a_bundle_is_exported_with_its_packages(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_model / name, folder / name)
    words = ["export", str(folder), str(tmp_path / "b"), "--target", "coreml", "--rank", "64", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["verification"]
    assert "TextEncoderWithAdapters" in {row["component"] for row in rows}
    bundle = Bundle.open(tmp_path / "b", check="full")
    told = bundle.read_json("coreml/lora_edge_coreml.json")
    assert told["rank"] == 64 and told["fingerprint"] == bundle.fingerprint
    assert "coreml/TextEncoder.mlpackage/Manifest.json" in bundle.manifest["files"]


def test_a_package_that_differs_from_torch_is_not_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model / "text_encoder", tmp_path / "text" / "text_encoder")
    monkeypatch.setitem(verify.BOUND, "fp16", 1e-9)
    monkeypatch.setattr(onnx_verify, "CASES", onnx_verify.CASES[:1])
    with pytest.raises(
        errors.VerificationError, match="TextEncoder.mlpackage differs from torch by .* nothing was wri"
    ):
        lora_edge.export(tmp_path / "text", tmp_path / "bundle", coreml={})
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_settings_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for settings, words in (
        ({"rank": 8}, "rank=8; choose 16, 32, 64"),
        ({"os": "iOS15"}, "os='iOS15'; choose iOS16, iOS17, iOS18"),
        ({"palettize": 5}, "palettize=5; choose 6, 4"),
        ({"chunks": 3}, "chunks=3; choose 1, 2"),
    ):
        with pytest.raises(errors.ExportError, match=f"Core ML packages cannot be made with {words}"):
            front.export(tmp_path, tmp_path / "b", coreml=settings)
    for words, told in ((["--rank", "16"], "is for --target coreml"), (["--target", "tpu"], "neither onnx nor coreml")):
        done = CliRunner().invoke(app, ["export", "a", "b", *words])
        assert done.exit_code == 2 and told in done.output


def test_without_coremltools_the_export_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(errors.ExportError, match=r"pip install 'lora-edge\[coreml\]'"):
        lora_edge.export(tmp_path, tmp_path / "bundle", coreml={})
