"""Programs beside the ONNX graphs: what is in the files, and which files are refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge import errors
from lora_edge.bundle import MANIFEST, Bundle
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.programfile import read_program
from lora_edge.runtime.programparts import EMBEDDING, open_parts, program_of
from lora_edge.runtime.torchprogram import TorchGraph

COMPONENTS = ("unet", "text_encoder", "vae_decoder", "vae_encoder")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.mark.parametrize("name", COMPONENTS)
def test_torch_reads_the_file_and_computes_the_same(bundle: Bundle, name: str) -> None:
    component = bundle.component(name)
    parts = open_parts(component.graph, program_of(bundle, component), component.table)
    loaded = torch.export.load(component.graph.with_name("model.pt2"))
    assert {tensor.device.type for tensor in loaded.state_dict.values()} <= {"meta", "cpu"}
    for tensor_name, tensor in parts.tensors.items():
        if tensor_name in loaded.state_dict:
            loaded.state_dict[tensor_name] = torch.nn.Parameter(torch.from_numpy(np.array(tensor)))
    random = np.random.default_rng(0)
    sizes = {"rows": 2, "height": 16, "width": 24, "tokens": 77, "steps": 2}
    feeds = {}
    for port, told in parts.inputs.items():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in told.shape]
        drawn = random.integers(0, 512, shape) if told.dtype == np.int64 else random.standard_normal(shape)
        feeds[port] = drawn.astype(told.dtype)
    with torch.no_grad():
        made = loaded.module()(*map(torch.from_numpy, feeds.values()))
    expected = made if isinstance(made, tuple) else (made,)
    got = TorchGraph(parts).run(feeds)
    assert len(got) == len(expected)
    for ours, theirs in zip(got.values(), expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 2e-6 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_weights_are_those_of_the_onnx_graph(bundle: Bundle, name: str) -> None:
    file = bundle.component(name).graph.with_name("model.pt2")
    held = read_program(file).held
    # A VAE's attention has no slots, and the ONNX graph keeps its weights turned, under names of its own.
    assert all(array.nbytes <= 1024 or ".attentions." in key for key, array in held.items()), (
        "they lie in the data file"
    )
    assert name.startswith("vae") or not any(
        ".attentions." in key and array.nbytes > 1024 for key, array in held.items()
    )
    described = bundle.manifest["files"][f"{name}/model.pt2"]
    assert described["size"] == file.stat().st_size
    verified = bundle.manifest["components"][name]["program"]["verification"]
    assert verified and all(outcome["relative"] <= 2e-5 for outcome in verified)


def test_no_trace_of_the_machine_and_no_examples(bundle: Bundle) -> None:
    for name in COMPONENTS:
        held = bundle.component(name).graph.with_name("model.pt2").read_bytes()
        for words in (b"site-packages", b"diffusers", b"transformers", b".py", str(bundle.folder).encode()):
            assert words not in held, words
        with zipfile.ZipFile(bundle.component(name).graph.with_name("model.pt2")) as archive:
            assert all(
                archive.getinfo(entry).file_size == 0 for entry in archive.namelist() if "sample_inputs" in entry
            )


def test_calls_that_change_nothing_are_left_out(bundle: Bundle) -> None:
    calls = {call.operator for call in read_program(bundle.component("unet").graph.with_name("model.pt2")).calls}
    assert not any(word in call for call in calls for word in ("dropout", "assert", "aten.to."))


def test_a_bundle_without_programs_says_how_to_get_them(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "bundle", copy_function=lambda a, b: Path(b).symlink_to(a))
    manifest = json.loads((bundle.folder / MANIFEST).read_text(encoding="utf-8"))
    for entry in manifest["components"].values():
        del entry["program"]
    (tmp_path / "bundle" / MANIFEST).unlink()
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(errors.BundleDamaged, match="outside the bundle"):
        Bundle.open(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle")
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    engine = Engine.open(tmp_path / "bundle", "torch")
    with pytest.raises(errors.ComponentMissing, match="no program of its text_encoder .* --target torch"):
        engine.run("text_encoder", {"input_ids": [[512, 513]]})


Change = Callable[[Json], object]


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """Copies of the text encoder's files, to be damaged."""
    for file in ("model.pt2", "model.onnx.data"):
        shutil.copyfile(bundle.component("text_encoder").graph.with_name(file), tmp_path / file)
    return tmp_path


def rewritten(file: Path, entry: str, change: Change) -> None:
    """Change one JSON entry of the archive."""
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = f"model/{entry}"
    told = json.loads(held[name])
    change(told)
    held[name] = json.dumps(told).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, data in held.items():
            archive.writestr(key, data)


def node(told: Json, operator: str) -> Json:
    found: Json = next(one for one in told["graph_module"]["graph"]["nodes"] if one["target"] == operator)
    return found


LINEAR = "torch.ops.aten.linear.default"
FAULTS: dict[str, tuple[str, Change, str]] = {
    "an operator of another kind": (
        "models/model.json",
        lambda told: node(told, LINEAR).update(target="torch.ops.aten.from_file.default"),
        "calls 'torch.ops.aten.from_file.default'",
    ),
    "a function of Python": (
        "models/model.json",
        lambda told: node(told, LINEAR).update(target="builtins.eval"),
        "calls 'builtins.eval'",
    ),
    "a value before it is made": (
        "models/model.json",
        lambda told: told["graph_module"]["graph"]["nodes"].reverse(),
        "before it is made",
    ),
    "an output that nothing makes": (
        "models/model.json",
        lambda told: told["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"].update(
            as_tensor={"name": "nowhere"}
        ),
        "returns 'nowhere'",
    ),
    "an expression where a number should be": (
        "models/model.json",
        lambda told: node(told, "torch.ops.aten.layer_norm.default")["inputs"][1].update(
            arg={"as_ints": ["__import__('os')"]}
        ),
        "where a number should be",
    ),
    "an argument of an unknown kind": (
        "models/model.json",
        lambda told: node(told, LINEAR)["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}}),
        "as_custom_obj",
    ),
    "another schema": ("models/model.json", lambda told: told["schema_version"].update(major=9), "version 9"),
    "no version": ("models/model.json", lambda told: told.pop("schema_version"), "schema_version"),
    "a pickle among the tensors": (
        "data/constants/model_constants_config.json",
        lambda told: next(iter(told["config"].values())).update(use_pickle=True),
        "pickled, which is not opened",
    ),
    "a tensor of another size": (
        "data/constants/model_constants_config.json",
        lambda told: next(iter(told["config"].values()))["tensor_meta"].update(sizes=[{"as_int": 2**40}]),
        "is not a program",
    ),
    "a negative size": (
        "data/constants/model_constants_config.json",
        lambda told: next(iter(told["config"].values()))["tensor_meta"].update(sizes=[{"as_int": -1}, {"as_int": -77}]),
        "which are not",
    ),
    "a tensor that is not there": (
        "data/constants/model_constants_config.json",
        lambda told: next(iter(told["config"].values())).update(path_name="../../secret"),
        "secret",
    ),
    "something else than an object": (
        "models/model.json",
        lambda told: told.update(graph_module=[1, 2]),
        "is not a program",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_programs(folder: Path, fault: str) -> None:
    entry, change, words = FAULTS[fault]
    rewritten(folder / "model.pt2", entry, change)
    with pytest.raises((errors.BundleDamaged, errors.BundleVersionError), match=words):
        read_program(folder / "model.pt2")


def test_truncated_and_foreign_files(folder: Path) -> None:
    file = folder / "model.pt2"
    whole = file.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(errors.BundleDamaged):
            read_program(file)
    file.unlink()
    with pytest.raises(errors.BundleDamaged):
        read_program(file)


def test_bytes_anywhere_may_be_wrong(folder: Path) -> None:
    """A reader's answer to a damaged file is a program or a refusal, nothing else."""
    file = folder / "model.pt2"
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        held = bytearray(whole)
        for at in random.integers(0, len(whole), 5):
            held[at] = random.integers(0, 256)
        file.write_bytes(held)
        try:
            read_program(file)
        except (errors.BundleDamaged, errors.BundleVersionError) as error:
            assert str(file) in str(error)


Place = Callable[[Json], object]
SLOT = "text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("should lie at bytes", lambda told: told["tensors"][SLOT].update(offset=2**50)),
        ("should lie at bytes", lambda told: told["tensors"][SLOT].update(offset=-4)),
        ("should lie at bytes", lambda told: told["tensors"][SLOT].update(shape=[2**40, 64])),
        ("as .* where the slot is", lambda told: told["tensors"][SLOT].update(transposed=False)),
        ("is no table of rows", lambda told: told["tensors"][EMBEDDING].update(shape=[64])),
        ("nothing says where", lambda told: told["tensors"].pop(SLOT)),
        ("lacks or misspells", lambda told: told["tensors"][SLOT].update(dtype="F8")),
        ("lacks or misspells", lambda told: told.pop("outputs")),
        ("lacks or misspells", lambda told: told["inputs"]["input_ids"].update(dtype="object")),
        ("where the manifest says", lambda told: told["outputs"].pop()),
        ("where the manifest says", lambda told: told["inputs"].update(more=told["inputs"]["input_ids"])),
    ],
)
def test_a_manifest_that_does_not_fit(bundle: Bundle, folder: Path, words: str, change: Place) -> None:
    component = bundle.component("text_encoder")
    told = json.loads(json.dumps(program_of(bundle, component)))
    change(told)
    with pytest.raises(errors.BundleDamaged, match=words):
        open_parts(folder / "model.onnx", told, component.table)


def test_weights_that_are_missing_or_cut(bundle: Bundle, folder: Path) -> None:
    component = bundle.component("text_encoder")
    told = program_of(bundle, component)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(errors.BundleDamaged, match="which has 1000"):
        open_parts(folder / "model.onnx", told, component.table)
    data.unlink()
    with pytest.raises(errors.BundleDamaged, match="is missing"):
        open_parts(folder / "model.onnx", told, component.table)


def test_a_slot_without_a_layer(bundle: Bundle, folder: Path) -> None:
    """A layer that no longer reads its slot's weight would take no adapter, silently."""
    component = bundle.component("text_encoder")

    def swap(told: Json) -> None:
        inputs = node(told, LINEAR)["inputs"]
        wrong = [one for one in told["graph_module"]["graph"]["nodes"] if one["target"] == LINEAR][1]["inputs"]
        inputs[1]["arg"] = wrong[1]["arg"]

    rewritten(folder / "model.pt2", "models/model.json", swap)
    parts = open_parts(folder / "model.onnx", program_of(bundle, component), component.table)
    with pytest.raises(errors.BundleDamaged, match="has no layer of the weight"):
        TorchGraph(parts)
