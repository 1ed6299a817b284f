"""What torch saved, in either form, against what torch loads; and where the result is written."""

import base64
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from lora_edge.adapterfile import read_adapter
from lora_edge.cli import app
from lora_edge.errors import AdapterFileDamaged, AdapterNotFound, PickleRefused, RequestError
from lora_edge.tools.convert import Converted, convert
from lora_edge.tools.write import write_tensors

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
OTHERS = ("int64", "int32", "int16", "int8", "uint8", "bool")

Convert = Callable[..., tuple[Converted, dict[str, torch.Tensor]]]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.fixture
def converted(tmp_path: Path) -> Convert:
    """converted(tree, zipped, **how) -> what `convert` says, and the tensors as the reference reader loads them."""

    def run(tree: Any, zipped: bool = True, **how: Any) -> tuple[Converted, dict[str, torch.Tensor]]:
        source, target = tmp_path / "x.pt", tmp_path / "x.safetensors"
        torch.save(tree, source, _use_new_zipfile_serialization=zipped, **how)
        made = convert(source, target, overwrite=True)
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.pt", "x.safetensors"]
        return made, load_file(target)

    return run


def assert_same(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and bits."""
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert made[name].dtype == tensor.dtype and made[name].shape == tensor.shape, name
        bits = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (made[name], tensor)]
        assert torch.equal(*bits), name


@FORMS
@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_every_dtype(dtype: str, zipped: bool, converted: Convert) -> None:
    values = torch.randn(3, 5).mul(3).to(getattr(torch, dtype))
    made, tensors = converted({"a": values, "b": values[1:, ::2], "c": values[0, 0]}, zipped)
    assert_same(tensors, {"a": values, "b": values[1:, ::2], "c": values[0, 0]})
    assert made.tensors == 3 and len(made.dtypes) == 1 and made.nbytes == made.path.stat().st_size


@FORMS
def test_every_layout(zipped: bool, converted: Convert) -> None:
    base = torch.randn(6, 8)
    tree = {
        "whole": base,
        "transposed": base.t(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "sliced": base[1:5:2, 3:],
        "one row": base[3],
        "scalar": base[2, 2],
        "same again": base,
        "expanded": torch.randn(1, 3).expand(4, 3),
        "empty": torch.zeros(0, 7),
        "no elements": base[6:],
        "one": torch.ones(1, 1, 1),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "nan and infinity": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    assert_same(converted(tree, zipped)[1], tree)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, converted: Convert) -> None:
    tree = {"a.weight": torch.randn(2, 2), "none": None, "set": {"x"}, "many": list(range(300)), "text": "é" * 300}
    made, tensors = converted(tree, pickle_protocol=protocol)
    assert_same(tensors, {"a.weight": tree["a.weight"]})
    assert (
        made.metadata["text"] == tree["text"] and made.metadata["many.299"] == "299" and made.metadata["set.0"] == "x"
    )


@FORMS
def test_state_dicts_and_parameters(zipped: bool, converted: Convert) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert_same(converted(model.state_dict(), zipped)[1], dict(model.state_dict()))
    assert_same(converted(dict(model.named_parameters()), zipped)[1], dict(model.named_parameters()))


@FORMS
def test_what_trainers_put_around_a_state_dict(zipped: bool, converted: Convert) -> None:
    weights = OrderedDict({"lora_unet_x.lora_up.weight": torch.randn(4, 2)})
    tree = {
        "state_dict": weights,
        "epoch": 3,
        "note": "ink",
        "optimizer_states": [{"state": {0: {"m": torch.ones(3)}}}],
    }
    made, tensors = converted(tree, zipped)
    assert_same(tensors, dict(weights))
    assert made.metadata == {"format": "pt", "epoch": "3", "note": "ink"} == metadata_of(made.path)
    assert made.left_out == ("optimizer_states.0.state.0.m",)


@FORMS
def test_numbers_beside_tensors_are_alphas(zipped: bool, converted: Convert) -> None:
    up = torch.randn(4, 2)
    tree = {"x.lora_up.weight": up, "x.alpha": 0.1, "y.alpha": 4, "z.alpha": torch.tensor(2.0).half(), "step": 500}
    made, tensors = converted(tree, zipped)
    assert_same(tensors, {
        "x.lora_up.weight": up, "z.alpha": tree["z.alpha"],
        "x.alpha": torch.tensor(0.1, dtype=torch.float64), "y.alpha": torch.tensor(4),
    })  # fmt: skip
    assert made.metadata == {"format": "pt", "step": "500"}


def test_nested_containers_get_dotted_names(converted: Convert) -> None:
    one, two = torch.ones(2), torch.zeros(3)
    tree = {"unet": {"down": [one, (two, one)]}, "dtype": torch.float16, 7: two, "size": torch.Size([2, 3])}
    made, tensors = converted(tree)
    assert_same(tensors, {"unet.down.0": one, "unet.down.1.0": two, "unet.down.1.1": one, "7": two})
    assert made.metadata == {"format": "pt", "dtype": "F16", "size.0": "2", "size.1": "3"}
    assert_same(converted(one)[1], {"tensor": one})
    assert_same(converted([one, two])[1], {"0": one, "1": two})


@FORMS
@pytest.mark.parametrize("holder", [dict, torch.nn.ParameterDict])
def test_an_embedding_of_automatic1111(holder: Any, zipped: bool, converted: Convert) -> None:
    vectors = torch.nn.Parameter(torch.randn(2, 768))
    tree = {
        "string_to_token": {"*": 265}, "string_to_param": holder({"*": vectors}), "name": "ink",
        "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": "v1-5",
    }  # fmt: skip
    made, tensors = converted(tree, zipped)
    assert_same(tensors, {"string_to_param.*": vectors})
    assert made.metadata == {
        "format": "pt", "string_to_token.*": "265", "name": "ink", "step": "500", "sd_checkpoint_name": "v1-5",
    }  # fmt: skip


def test_an_embedding_in_a_picture(tmp_path: Path) -> None:
    vectors = torch.randn(2, 8)
    tree = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": vectors.numpy().tolist()}},
        "step": 9,
    }
    info = PngInfo()
    info.add_text("parameters", "a cat")
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(tree).encode()).decode())
    Image.new("RGB", (64, 64)).save(tmp_path / "ink.png", pnginfo=info)
    made = convert(tmp_path / "ink.png", tmp_path / "ink.safetensors")
    assert_same(load_file(made.path), {"string_to_param.*": vectors})
    assert made.metadata == {"format": "pt", "string_to_token.*": "265", "step": "9"}


def test_a_peft_folder_with_its_settings(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 6))
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], rank_pattern={"1": 3})
    adapted = peft.get_peft_model(model, config)
    for name, safe in (("old", False), ("new", True)):
        adapted.save_pretrained(tmp_path / name, safe_serialization=safe)
    if not (tmp_path / "old" / "adapter_model.bin").exists():  # a PEFT that writes safetensors alone
        torch.save(peft.get_peft_model_state_dict(adapted), tmp_path / "old" / "adapter_model.bin")
        (tmp_path / "old" / "adapter_model.safetensors").unlink(missing_ok=True)
    made = convert(tmp_path / "old", tmp_path / "style.safetensors")
    assert_same(load_file(made.path), load_file(tmp_path / "new" / "adapter_model.safetensors"))
    one, other = read_adapter(made.path).configs[""], read_adapter(tmp_path / "new").configs[""]
    assert (one.rank, one.alpha, one.rank_pattern) == (other.rank, other.alpha, other.rank_pattern) == (2, 6, {"1": 3})


def test_a_zip_in_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond 4 GiB have such a folder; python writes one for any file when its limit is lowered."""
    values = torch.randn(5)
    torch.save({"a": values}, buffer := io.BytesIO())
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    with zipfile.ZipFile(buffer) as read, zipfile.ZipFile(tmp_path / "x.pt", "w") as written:
        for entry in read.infolist():
            written.writestr(entry.filename, read.read(entry))
    assert b"PK\x06\x06" in (tmp_path / "x.pt").read_bytes()
    assert_same(load_file(convert(tmp_path / "x.pt", tmp_path / "x.safetensors").path), {"a": values})


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source, target = tmp_path / "x.pt", tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(2)}, source)
    target.write_bytes(b"mine")
    with pytest.raises(RequestError, match=r"x\.safetensors exists already; .*--force"):
        convert(source, target)
    assert target.read_bytes() == b"mine"
    convert(source, target, overwrite=True)
    assert_same(load_file(target), {"a": torch.ones(2)})
    with pytest.raises(RequestError, match=r"does not end in \.safetensors"):
        convert(source, tmp_path / "x.bin")
    with pytest.raises(RequestError, match="the folder .*deep.* does not exist"):
        convert(source, tmp_path / "deep" / "x.safetensors")
    disguised = source.rename(tmp_path / "y.safetensors")
    with pytest.raises(RequestError, match="is the file to convert"):
        convert(disguised, disguised, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


def test_what_is_refused_leaves_the_old_file(tmp_path: Path) -> None:
    source, target = tmp_path / "x.pt", tmp_path / "x.safetensors"
    target.write_bytes(b"mine")
    torch.save({"a": torch.ones(2) * 1j}, source)
    with pytest.raises(PickleRefused, match="asks for torch.ComplexFloatStorage, which is no plain tensor"):
        convert(source, target, overwrite=True)
    torch.save({"a": torch.eye(2).to_sparse()}, source)
    with pytest.raises(PickleRefused, match="asks for torch._utils._rebuild_sparse_tensor"):
        convert(source, target, overwrite=True)
    torch.save({"a": np.ones(2)}, source)
    with pytest.raises(PickleRefused, match="asks for numpy"):
        convert(source, target, overwrite=True)
    torch.save({"only": "text"}, source)
    with pytest.raises(PickleRefused, match="holds no tensors"):
        convert(source, target, overwrite=True)
    assert target.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is neither a pickle of torch nor a picture with an embedding"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0{}", "is a safetensors file already"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is a WebP picture: an embedding that is hidden in pixels is not read"),
    ],
)
def test_other_files(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(AdapterFileDamaged, match=sentence):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="gone.pt does not exist"):
        convert(tmp_path / "gone.pt", tmp_path / "x.safetensors")
    with pytest.raises(AdapterNotFound, match="is a folder without adapter_model.bin"):
        convert(tmp_path, tmp_path / "x.safetensors")


def test_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": {"m": torch.ones(2)}}, source)
    run = CliRunner()
    done = run.invoke(app, ["convert", str(source), str(target)])
    assert done.exit_code == 0 and f"{target}: 1 tensors (F32)" in done.stdout
    assert "left out: 1 tensors beside the state_dict (optimizer.m)" in done.stdout
    assert isinstance(run.invoke(app, ["convert", str(source), str(target)]).exception, RequestError)
    told = json.loads(run.invoke(app, ["convert", str(source), str(target), "--force", "--json"]).stdout)
    assert told["tensors"] == 1 and told["left_out"] == ["optimizer.m"] and told["path"] == str(target)


def test_a_disk_that_loses_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(path: Path, tensors: Any, metadata: Any) -> None:
        write_tensors(path, tensors, metadata)
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    monkeypatch.setattr("lora_edge.tools.convert.write_tensors", lossy)
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(RequestError, match="reads otherwise than it was written"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
