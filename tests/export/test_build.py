"""Exports: what is refused, what is left behind, and which checkpoints are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file
from torch import nn

import lora_edge
from lora_edge import errors
from lora_edge.bundle import Bundle, sha256
from lora_edge.export import verify
from lora_edge.export.build import Listener
from lora_edge.export.slotted import COSTS, placement
from lora_edge.export.variants import VARIANTS
from lora_edge.export.weights import write_graphs
from lora_edge.runtime.engine import Engine
from lora_edge.slots import Slot, SlotTable


@pytest.fixture
def text_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with only a text encoder and its tokenizer: what traces fastest."""
    folder = tmp_path / "text"
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_model / name, folder / name)
    return folder


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    change(held)
    path.write_text(json.dumps(held), encoding="utf-8")


def test_a_folder_with_only_some_components_exports_those(text_model: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    outcomes: list[tuple[str, verify.Outcome]] = []
    listener = Listener(stage=stages.append, outcome=lambda name, outcome: outcomes.append((name, outcome)))
    made = lora_edge.export(text_model, tmp_path / "bundle", listener=listener)
    assert list(made.components) == ["text_encoder"]
    assert (made.folder / "tokenizer" / "vocab.json").is_file()
    assert stages[0] == "text_encoder: loading" and stages[-1] == "hashing and writing the manifest"
    cases = [case.name for case in verify.CASES]
    assert [outcome.case for name, outcome in outcomes if name == "text_encoder"] == cases
    assert {name for name, _ in outcomes} == {"text_encoder", "text_encoder (openvino)"}
    written = made.manifest["components"]["text_encoder"]["verification"]
    assert written == [outcome.to_json() for name, outcome in outcomes if name == "text_encoder"]
    assert all(outcome.relative <= verify.BOUND for _, outcome in outcomes)
    with pytest.raises(errors.ComponentMissing, match="has no unet; it has text_encoder"):
        Engine.open(made.folder).generate("x")


def test_text_encoders_of_transformers_4_are_read(text_model: Path, tmp_path: Path) -> None:
    """transformers 4 wrote `text_model.` before every name and said so in no other place."""
    weights = text_model / "text_encoder" / "model.safetensors"
    now = lora_edge.export(text_model, tmp_path / "now")
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})
    old = lora_edge.export(text_model, tmp_path / "old")
    assert [slot.name for slot in old.tables[0]] == [slot.name for slot in now.tables[0]]
    assert all(slot.name.startswith("text_model.encoder.layers.") for slot in old.tables[0])
    ids = {"input_ids": np.arange(77)[None]}
    one, other = (Engine.open(made.folder).run("text_encoder", ids) for made in (now, old))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_tokenizer_that_is_one_json_is_written_as_vocabulary_and_merges(text_model: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    told = CLIPTokenizer.from_pretrained(text_model / "tokenizer")
    shutil.rmtree(text_model / "tokenizer")
    told.save_pretrained(text_model / "tokenizer")
    made = lora_edge.export(text_model, tmp_path / "bundle")
    vocabulary = json.loads((made.folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == told.get_vocab()
    assert (made.folder / "tokenizer" / "merges.txt").is_file()


def test_nothing_is_replaced_unasked(tiny_bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ExportError, match="exists already; pass overwrite"):
        lora_edge.export(tiny_model, tiny_bundle)
    (tmp_path / "photos").mkdir()
    with pytest.raises(errors.ExportError, match="is not a bundle, so it is not replaced"):
        lora_edge.export(tiny_model, tmp_path / "photos", overwrite=True)


def test_a_graph_that_differs_from_torch_is_not_written(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "BOUND", 1e-12)
    with pytest.raises(errors.VerificationError, match="differs from torch by .* nothing was written"):
        lora_edge.export(text_model, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_interrupted_export_leaves_nothing(text_model: Path, tmp_path: Path) -> None:
    def stop(what: str) -> None:
        if what.endswith("verifying"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lora_edge.export(text_model, tmp_path / "bundle", listener=Listener(stage=stop))
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_sources_that_cannot_be_exported(text_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def refused(words: str) -> None:
        with pytest.raises(errors.CheckpointError, match=words):
            lora_edge.export(text_model, target)
        assert not target.exists()

    with pytest.raises(errors.CheckpointError, match="nowhere is not a folder"):
        lora_edge.export(tmp_path / "nowhere", target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.CheckpointError, match="holds none of the components"):
        lora_edge.export(tmp_path / "empty", target)
    config = text_model / "text_encoder" / "config.json"
    good = config.read_text(encoding="utf-8")
    edit(config, lambda held: held.update(architectures=["T5EncoderModel"]))
    refused("is a T5EncoderModel; lora-edge exports CLIPTextModel")
    config.write_text("{", encoding="utf-8")
    refused("config.json cannot be read as JSON")
    config.write_text(good, encoding="utf-8")
    weights = text_model / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("weights in .*text_encoder cannot be loaded")
    (text_model / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    refused("model_index.json names a unet, but")


def test_other_architectures_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xl" / "unet"
    shutil.copytree(tiny_model / "unet", folder)
    edit(folder / "config.json", lambda held: held.update(addition_embed_type="text_time"))
    with pytest.raises(errors.CheckpointError, match="addition_embed_type='text_time', which is not the SD1 archit"):
        lora_edge.export(tmp_path / "xl", tmp_path / "bundle")


def test_the_manifest_names_every_file_and_its_hash(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, check="full")
    on_disk = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert set(bundle.manifest["files"]) == on_disk - {"lora_edge.json"}
    for path, entry in bundle.manifest["files"].items():
        assert entry == {"size": (tiny_bundle / path).stat().st_size, "sha256": sha256(tiny_bundle / path)}
        assert (tiny_bundle / path).stat().st_mode & 0o444 == 0o444, "readable by whoever serves it"
    assert bundle.manifest["abi"] == 1 and bundle.manifest["prediction_type"] == "epsilon"
    assert bundle.component("unet").table.facts == {"levels": 2, "cross_attention_dim": 64, "layers_per_block": 1}


def test_placement_counts_multiplications() -> None:
    """SD 1.5 at 64 x 64 latents: wide maps take the weight form, the deepest and the text take the activation form."""
    for costs in COSTS.values():
        assert placement(4096, 320, 320, costs) == "weight"
        assert placement(64, 1280, 1280, costs) == "activation"
        assert placement(77, 768, 768, costs) == "activation"
        assert placement(1, 320, 1280, costs) == "activation"


def test_placement_is_that_of_the_backend_and_the_form() -> None:
    assert placement(1024, 640, 640, COSTS["onnxruntime", "whole"]) == "activation"
    assert placement(1024, 640, 640, COSTS["onnxruntime", "parts"]) == "weight"
    assert placement(1024, 640, 640, COSTS["openvino", "whole"]) == "weight"
    assert all(placement(256, 1280, 1280, costs) == "activation" for costs in COSTS.values())


def test_a_pass_that_loses_a_weight_is_noticed(tmp_path: Path) -> None:
    """Adapters are computed from the slots' own weights, so the manifest must find each in the finished graph."""
    held = ir.Value(name="a.bias", const_value=ir.tensor(np.zeros(4, np.float32), name="a.bias"))
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[held]), ir_version=10)
    with pytest.raises(errors.ExportError, match=r"has no tensor a\.weight; a pass renamed, folded or recoded it"):
        write_graphs({VARIANTS[0].file: model}, SlotTable("unet", (Slot("a", 4, 4),)), tmp_path)


def test_base_values_of_norms_lie_in_the_bundle(tiny_bundle: Path, tiny_model: Path) -> None:
    norms = Bundle.open(tiny_bundle).component("unet").norms()
    state = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert norms and all(np.array_equal(array, state[name].numpy()) for name, array in norms.items())


def test_without_torch_the_export_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("lora_edge.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(errors.ExportError, match=r"pip install 'lora-edge\[export\]'"):
        lora_edge.export(tmp_path, tmp_path / "bundle")


def test_groups_are_no_slots() -> None:
    """A Conv with groups has no low-rank form of the contract's shape; Stable Diffusion has none."""
    from lora_edge.export.slotted import _takes_update

    assert _takes_update(nn.Conv2d(4, 4, 3)) and not _takes_update(nn.Conv2d(4, 4, 3, groups=4))
