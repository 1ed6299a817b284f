"""The reader against the reference implementation, and against files that mean harm."""

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from lora_edge.errors import AdapterFileDamaged, BundleDamaged
from lora_edge.tensorfile import DTYPES, MAX_HEADER, TensorFile, data_sha256, read_header

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def written(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_reads_as_the_reference_does(dtype: str, tmp_path: Path) -> None:
    size = DTYPES[dtype].itemsize
    bits = torch.arange(min(256**size, 65536)).to({1: torch.uint8, 2: torch.uint16}.get(size, torch.int64))
    stored = TORCH[dtype]
    tensor = bits.to(stored) if size > 2 or dtype == "BOOL" else bits.view(stored)  # every code there is
    tensor = tensor.reshape(2, -1)
    safetensors.torch.save_file({"a": tensor, "scalar": tensor[0, 1].clone()}, tmp_path / "f.safetensors")
    file = TensorFile.open(tmp_path / "f.safetensors")
    wanted = tensor.float() if tensor.is_floating_point() else tensor.long()
    assert (file.dtype("a"), file.shape("a"), file.shape("scalar")) == (dtype, tuple(tensor.shape), ())
    np.testing.assert_array_equal(file.read("a"), wanted.numpy())
    assert file.read("a").dtype == wanted.numpy().dtype
    np.testing.assert_array_equal(file.read("scalar"), wanted[0, 1].numpy())


def test_names_metadata_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    tensors = {"é.b": torch.zeros(2, 0, 3), "a": torch.ones(3)}
    safetensors.torch.save_file(tensors, path, metadata={"ss_output_name": "ink"})
    file = TensorFile.open(str(path))
    assert set(file.names) == set(tensors)
    assert file.metadata == {"ss_output_name": "ink"}
    assert (file.nbytes("a"), file.nbytes("é.b"), file.read("é.b").shape) == (12, 0, (2, 0, 3))
    assert read_header(path).metadata == file.metadata


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(written({}))
    assert TensorFile.open(tmp_path / "f").names == ()


def test_read_copies_and_view_does_not(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    safetensors.torch.save_file({"a": torch.arange(3.0)}, path)
    file = TensorFile.open(path)
    view, copy = file.view("a"), file.read("a")
    assert not view.flags.owndata and not view.flags.writeable
    path.unlink()
    del file
    copy += 1
    np.testing.assert_array_equal(view, [0, 1, 2])


def test_a_float64_beyond_float32_becomes_infinite_without_a_warning(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "f")
    assert np.isinf(TensorFile.open(tmp_path / "f").read("a"))


def test_a_file_that_is_cut_while_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(5000)}, path)
    file = TensorFile.open(path)
    os.truncate(path, 100)
    with pytest.raises(AdapterFileDamaged, match="was cut while it was in use"):
        file.read("a")


def test_data_hash_ignores_metadata(tmp_path: Path) -> None:
    for name in ("a", "b"):
        safetensors.torch.save_file({"x": torch.arange(4.0)}, tmp_path / name, metadata={"name": name * 9})
    assert data_sha256(tmp_path / "a") == data_sha256(tmp_path / "b")


GOOD = {"a": entry()}
DEEP = b'{"a":' + b"[" * 100_000

HOSTILE = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "truncated or no safetensors file"),
    "header only promised": (written(b"", length=50), "truncated or no safetensors file"),
    "header of 2**40": (written(GOOD, bytes(4), length=2**40), "a header of 1099511627776 bytes"),
    "header of 2**64 - 1": (written(GOOD, bytes(4), length=2**64 - 1), "truncated or no safetensors file"),
    "web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "web page after a newline": (b"\n<html>\n<body></body></html>", "is a web page"),
    "zip pickle": (b"PK\x03\x04" + bytes(60), "convert it first with `lora-edge convert`"),
    "old pickle": (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j" + bytes(60),
        "convert it first with `lora-edge convert`",
    ),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "gguf": (b"GGUF" + bytes(60), "is a GGUF file"),
    "json": (b'{"peft_type": "LORA"}', "is JSON text"),
    "header is no object": (written(b"[1]"), "does not begin with {"),
    "header is not JSON": (written(b"{oops}"), "not JSON"),
    "header is not UTF-8": (written(b'{"\xff": 1}'), "not JSON"),
    "header is nested deeply": (written(DEEP), "otherwise than by dtype"),
    "entry is nested deeply": (written(b'{"a":{"shape":' + b"[" * 1900 + b"}}"), "not JSON"),
    "objects in objects": (written(b'{"a":{"a":' + b'{"a":' * 100), "otherwise than by dtype|not JSON"),
    "number of 10,000 digits": (written(b'{"a": ' + b"9" * 10_000 + b"}"), "otherwise than by dtype"),
    "number of 1,900 digits": (written({"a": entry(shape=[10**1900])}, bytes(4)), "too large for any memory"),
    "an entry without an end": (written(b'{"a":{"dtype":"F32"' + b" " * 5000), "otherwise than by dtype"),
    "duplicate name": (written(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)), "'a' twice"),
    "duplicate metadata": (written(b'{"__metadata__":{},"__metadata__":{}}'), "names '__metadata__' twice"),
    "duplicate string of metadata": (written(b'{"__metadata__":{"a":"","a":""}}'), "names 'a' twice"),
    "too many strings": (written({"__metadata__": {str(n): "" for n in range(10_001)}}), "more than 10000 strings"),
    "too many tensors": (
        written({str(n): entry(shape=[0], offsets=[0, 0]) for n in range(50_001)}),
        "more than 50000 tensors",
    ),
    "a comma too many": (written(b'{"__metadata__":{},}'), "not JSON: a name should be at character 19"),
    "a comma too few": (written(b'{"__metadata__":{} "a":1}'), "not JSON: a comma or }"),
    "a colon too few": (written(b'{"__metadata__"{}}'), "not JSON: : should be at character 15"),
    "something after the end": (written(b"{} {}"), "not JSON: the end should be at character 3"),
    "no end": (written(b'{"__metadata__":{"a":"b"}'), "not JSON: a comma or }"),
    "duplicate key inside": (written(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "names 'dtype' twice"),
    "metadata no map": (written({"__metadata__": ["x"]}), "not a map of strings"),
    "metadata of numbers": (written({"__metadata__": {"x": 1}}), "not a map of strings"),
    "entry no map": (written({"a": 3}), "otherwise than by dtype"),
    "entry lacks a key": (written({"a": {"dtype": "F32", "shape": [1]}}), "otherwise than by dtype"),
    "entry has a key more": (written({"a": entry(extra=1)}, bytes(4)), "otherwise than by dtype"),
    "unknown dtype": (written({"a": entry("F13")}, bytes(4)), "in dtype 'F13'"),
    "dtype no string": (written({"a": entry(["F32"])}, bytes(4)), "in dtype \\['F32'\\]"),
    "negative axis": (written({"a": entry(shape=[-1])}, bytes(4)), "a shape that is not"),
    "axis true": (written({"a": entry(shape=[True])}, bytes(4)), "a shape that is not"),
    "axis 1.0": (written({"a": entry(shape=[1.0])}, bytes(4)), "a shape that is not"),
    "shape no list": (written({"a": entry(shape=1)}, bytes(4)), "a shape that is not"),
    "a hundred axes": (written({"a": entry(shape=[1] * 100)}, bytes(4)), "a shape that is not"),
    "three offsets": (written({"a": entry(offsets=[0, 4, 4])}, bytes(4)), "not two counts"),
    "offset null": (written({"a": entry(offsets=[None, 4])}, bytes(4)), "not two counts"),
    "negative offset": (written({"a": entry(offsets=[-4, 0])}, bytes(4)), "not two counts"),
    "backward offsets": (written({"a": entry(offsets=[4, 0])}, bytes(4)), "-4 bytes where shape"),
    "wrong size": (written({"a": entry(shape=[2])}, bytes(4)), "4 bytes where shape \\[2\\] of F32 needs 8"),
    "shape overflows 64 bits": (written({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}), "too large"),
    "shape overflows around a zero": (written({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "too large"),
    "truncated data": (written({"a": entry()}, bytes(3)), "is truncated: its tensors take 4 bytes"),
    "data left over": (written({"a": entry()}, bytes(5)), "is too long"),
    "overlap": (written({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), "overlap at 'b'"),
    "same bytes twice": (written({"a": entry(), "b": entry()}, bytes(4)), "overlap at 'b'"),
    "hole": (written({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), "leave a hole at 'b'"),
    "hole at the start": (written({"a": entry(offsets=[4, 8])}, bytes(8)), "leave a hole at 'a'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    data, sentence = HOSTILE[case]
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    for reader in (TensorFile.open, read_header):
        with pytest.raises(AdapterFileDamaged, match=sentence) as caught:
            reader(path)
        assert str(caught.value).startswith(str(path))


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(written(b"{", length=MAX_HEADER + 1))
    os.truncate(path, MAX_HEADER + 100)  # sparse: takes no room on the disk
    tracemalloc.start()
    with pytest.raises(AdapterFileDamaged, match="at most 100000000 are read"):
        TensorFile.open(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_whatever_the_reference_refuses_is_refused(tmp_path: Path) -> None:
    """Damage a file at random: what is still read, the reference reads alike."""
    rng = random.Random(0)
    good = safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).half()}, {"k": "v"})
    path, read = tmp_path / "f.safetensors", 0
    for _ in range(800):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789"[]{},:aF\x00\xff')
        path.write_bytes(data)
        try:
            file = TensorFile.open(path)
        except AdapterFileDamaged:
            continue
        read += 1
        wanted = safetensors.torch.load(bytes(data))
        assert set(file.names) == set(wanted)
        for name in file.names:
            np.testing.assert_array_equal(file.read(name), wanted[name].to(torch.float32).numpy())
    assert read > 10


def test_the_class_of_refusals_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(BundleDamaged, match="is empty"):
        TensorFile.open(tmp_path / "f", BundleDamaged)


@pytest.mark.parametrize("name", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AdapterFileDamaged, match="cannot be read|is not a regular file"):
        TensorFile.open(tmp_path / name)
