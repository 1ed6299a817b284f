"""ONNX Runtime's adapter files, read by ourselves: against its own reader, and against files that mean harm."""

import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lora_edge import errors
from lora_edge.adapter import Adapter, Report
from lora_edge.bundle import Bundle
from lora_edge.embedding import Embedding
from lora_edge.forms import ComponentForms, Gain, LowRank, NormDelta
from lora_edge.opening import open_adapter
from lora_edge.ortadapter import model_version, read_onnx_adapter
from lora_edge.ortfile import OrtFile
from lora_edge.runtime.ortadapter import write_onnx_adapters

SLOT = "text_model.encoder.layers.0.mlp.fc1"
NORM = "text_model.final_layer_norm"
DOWN, UP, GAIN = (f"lora.{SLOT}.{leaf}" for leaf in ("down", "up", "gain_out"))
Tensors = dict[str, Any]
Change = Callable[[Tensors], Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def ink(bundle: Bundle) -> Adapter:
    rng = np.random.default_rng(0)
    forms = [
        LowRank(rng.standard_normal((64, rank), np.float32), rng.standard_normal((rank, 128), np.float32), scale)
        for rank, scale in ((2, 0.5), (3, 0.25))
    ]
    slots = {SLOT: (*forms, Gain("out", np.full(128, 3, np.float32)))}
    parts = {"text_encoder": ComponentForms(slots, {NORM: NormDelta(np.ones(64, np.float32))})}
    return Adapter("ink", ("lora",), parts, {}, Report())


@pytest.fixture
def written(ink: Adapter, bundle: Bundle, tmp_path: Path) -> Path:
    (path,) = write_onnx_adapters(ink, bundle, tmp_path / "ink")
    assert path.name == "ink.text_encoder.onnx_adapter" and len(list(tmp_path.iterdir())) == 1
    return path


def parameters(path: Path) -> Tensors:
    """By onnxruntime's own reader."""
    held = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    return {name: value.numpy().copy() for name, value in held.items()}


def save(path: Path, tensors: Tensors, adapter_version: int, model_version: int) -> Path:
    """By onnxruntime's own writer."""
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(adapter_version)
    made.set_model_version(model_version)
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array, order="C")) for name, array in tensors.items()
    }
    made.set_parameters(values)
    made.export_adapter(str(path))
    return path


def test_the_reader_against_onnxruntimes(written: Path) -> None:
    theirs, ours = parameters(written), OrtFile(written)
    assert theirs.keys() == ours.parameters.keys()
    for name, array in theirs.items():
        read = ours.read(name)
        assert read.dtype == array.dtype and np.array_equal(read, array), name
    assert {DOWN, UP, GAIN, f"{NORM}.weight", "lora.scales", "lora.ranks"} == theirs.keys()
    assert theirs["lora.scales"].tolist() == [[0.5, 0.5, 0.25, 0.25, 0.25]]


def test_odd_files_of_onnxruntime_are_read(tmp_path: Path) -> None:
    tensors = {"é": np.zeros((0, 4), np.float32), "scalar": np.array(5, np.int64), "a" * 1000: np.ones((2, 1, 3), "f4")}
    for held in (tensors, {}):
        file = OrtFile(save(tmp_path / "odd", held, -3, 2**31 - 1))
        assert (file.adapter_version, file.model_version) == (-3, 2**31 - 1)
        assert file.parameters.keys() == held.keys()
        assert all(np.array_equal(file.read(name), array) for name, array in held.items())


def test_what_is_read_is_what_was_written(written: Path, bundle: Bundle, ink: Adapter) -> None:
    read = open_adapter(written, bundle)
    assert (read.name, read.kinds, set(read.components), read.metadata) == ("ink", (), {"text_encoder"}, {})
    part, original = read.components["text_encoder"], ink.components["text_encoder"]
    for form, wanted in zip(part.slots[SLOT], original.slots[SLOT], strict=True):
        assert type(form) is type(wanted)
        assert all(np.array_equal(vars(form)[key], vars(wanted)[key]) for key in vars(form))
    with pytest.raises(errors.AdapterMismatch, match="changes text_encoder and not unet alone"):
        open_adapter(written, bundle, "unet")
    with pytest.raises(errors.AdapterTooLarge, match="5 lanes in memory"):
        open_adapter(written, bundle, max_bytes=100)


def fails(change: Change, error: type[Exception], words: str, name: str) -> Any:
    return pytest.param(change, error, words, id=name)


MISMATCH, OTHER = errors.AdapterMismatch, errors.PackMismatch
REFUSALS = [
    fails(lambda t: t.update(model=1), OTHER, r"packed for another bundle: for model version 1, where 'tiny' has \d+; "
          "pack the original again with `lora-edge pack`", "model version"),
    fails(lambda t: t.update(adapter=9), OTHER, "was packed with abi 9; this version reads 1", "abi"),
    fails(lambda t: t.update(strange=np.ones(1, "f4")), MISMATCH, "has inputs for, such as 'strange'", "name"),
    fails(lambda t: t.pop("lora.ranks"), MISMATCH, "such as 'lora.ranks'", "no ranks"),
    fails(lambda t: t.pop("lora.scales"), MISMATCH, r"needs lora.scales of shape \[1, 5\]", "no scales"),
    fails(lambda t: t.update({"lora.scales": t["lora.scales"][:, :4]}), MISMATCH, r"shape \[1, 5\]", "fewer scales"),
    fails(lambda t: t["lora.ranks"].__setitem__(slice(2), [2**62, -(2**62)]), MISMATCH, "needs lora.scales", "bomb"),
    fails(lambda t: t["lora.ranks"].__setitem__(slice(None), t["lora.ranks"][::-1].copy()), MISMATCH,
          "holds 'lora.text_model", "other slot's ranks"),
    fails(lambda t: t.pop(UP), MISMATCH, f"lacks {UP}", "no up"),
    fails(lambda t: t.update({UP: t[UP].T}), MISMATCH, r"of shape \[128, 5\] where \[5, 128\] is needed", "turned"),
    fails(lambda t: t.update({GAIN: np.ones(3, "f4")}), MISMATCH, r"of shape \[3\] where \[128\] or \[1\]", "gain"),
    fails(lambda t: t.update({UP: t[UP].astype("i8")}), MISMATCH, "in int64 where float32 is needed", "dtype"),
    fails(lambda t: t[UP].fill(np.nan), errors.AdapterValueError, f"not finite in '{UP}'", "nan"),
    fails(lambda t: t["lora.scales"].fill(np.inf), errors.AdapterValueError, "not finite in 'lora.scales'", "scale"),
    fails(lambda t: t.update({UP: t[UP].astype("f2")}), errors.AdapterFileDamaged, "neither float32 nor int64", "half"),
    fails(lambda t: t.update({"x" * 2000: t[UP]}), errors.AdapterFileDamaged, "2000 items where 1024 are", "long name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), REFUSALS)
def test_what_is_refused(written: Path, bundle: Bundle, change: Change, error: type[Exception], words: str) -> None:
    tensors = parameters(written)
    change(tensors)
    versions = tensors.pop("adapter", 1), tensors.pop("model", model_version(bundle))
    with pytest.raises(error, match=words) as caught:
        open_adapter(save(written, tensors, *versions), bundle)
    assert type(caught.value) is error and str(caught.value).startswith(str(written))


def test_names_that_fit_two_components(bundle: Bundle, written: Path) -> None:
    encoder = bundle.component("text_encoder")
    twin = replace(encoder, name="text_encoder_2", table=replace(encoder.table, component="text_encoder_2"))
    both = replace(bundle, components={**bundle.components, "text_encoder_2": twin})
    with pytest.raises(errors.AdapterMismatch, match="may be for text_encoder or text_encoder_2; say which"):
        read_onnx_adapter(written, both)
    assert set(read_onnx_adapter(written, both, "text_encoder_2").components) == {"text_encoder_2"}


def test_what_is_not_written(ink: Adapter, bundle: Bundle, written: Path, tmp_path: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(errors.RequestError, match=r"ink\.text_encoder\.onnx_adapter exists already"):
        write_onnx_adapters(ink, bundle, tmp_path / "ink")
    with pytest.raises(errors.RequestError, match="deep for the files does not exist"):
        write_onnx_adapters(ink, bundle, tmp_path / "deep" / "ink")
    worded = replace(ink, embeddings=(Embedding("sks", {"text_encoder": np.ones((1, 64), np.float32)}),))
    with pytest.raises(errors.AdapterMismatch, match=r"ink teaches words \(sks\), which .onnx_adapter files"):
        write_onnx_adapters(worded, bundle, tmp_path / "words")
    write_onnx_adapters(ink, bundle, tmp_path / "ink", force=True)
    assert written.read_bytes() == before and list(tmp_path.iterdir()) == [written]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\x00" * 64, "does not say TORT"),
        (b"\x08\x00\x00\x00TORT", "something lies outside the file"),
        (b"\xff\xff\xff\xffTORT" + bytes(64), "something lies outside the file"),
        (struct.pack("<I4siHHi", 12, b"TORT", 0, 0xFFFF, 0, 0), "something lies outside the file"),
    ],
)
def test_what_is_no_adapter_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(content)
    with pytest.raises(errors.AdapterFileDamaged, match=words):
        OrtFile(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(errors.AdapterFileDamaged, match="is not a regular file"):
        OrtFile(tmp_path)
    with pytest.raises(errors.AdapterFileDamaged, match="cannot be read"):
        OrtFile(tmp_path / "gone")


def test_tensors_that_share_their_bytes_are_refused_before_they_take_memory(written: Path) -> None:
    """The vector of parameters, every entry turned to the largest tensor: a megabyte could else become a gigabyte."""
    held = bytearray(written.read_bytes())
    root = struct.unpack_from("<I", held)[0]
    vtable = root - struct.unpack_from("<i", held, root)[0]
    field = root + struct.unpack_from("<H", held, vtable + 4 + 3 * 2)[0]
    vector = field + struct.unpack_from("<I", held, field)[0]
    count = struct.unpack_from("<I", held, vector)[0]
    places = [vector + 4 + 4 * index for index in range(count)]
    targets = [place + struct.unpack_from("<I", held, place)[0] for place in places]
    for target in targets:
        for place in places:
            struct.pack_into("<I", held, place, (target - place) % 2**32)
        written.write_bytes(held)
        tracemalloc.start()
        with pytest.raises(errors.AdapterFileDamaged, match="overlap|twice|outside"):
            OrtFile(written)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()
    struct.pack_into("<I", held, vector, 2**32 - 1)
    written.write_bytes(held)
    with pytest.raises(errors.AdapterFileDamaged, match="outside"):
        OrtFile(written)


def test_a_file_that_is_cut_while_open_is_refused(written: Path) -> None:
    file = OrtFile(written)
    os.truncate(written, 64)
    with pytest.raises(errors.AdapterFileDamaged, match="was cut while it was in use"):
        file.read(max(file.parameters, key=lambda name: file.parameters[name].start))


def test_no_mutation_escapes(written: Path, bundle: Bundle) -> None:
    original = written.read_bytes()
    rng, read = random.Random(1), 0
    places = [at for at in range(0, len(original) - 8, 4) if original[at : at + 4] != b"\0\0\0\0"]
    for _ in range(1000):
        made = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            at = min(rng.choice((rng.randrange(64), rng.choice(places), rng.randrange(len(made)))), len(made) - 4)
            match rng.randrange(3):
                case 0:
                    made[at] ^= 1 << rng.randrange(8)
                case 1:
                    struct.pack_into("<i", made, at, rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 7, 1024)))
                case _:
                    del made[rng.randrange(len(made) // 2, len(made)) :]
                    made += bytes(8)
        written.write_bytes(made)
        try:
            adapter = read_onnx_adapter(written, bundle)
        except errors.LoraEdgeError:
            continue
        read += 1
        for form in adapter.components["text_encoder"].slots.get(SLOT, ()):
            assert all(np.isfinite(array).all() for array in vars(form).values() if isinstance(array, np.ndarray))
    assert read > 20, "some change nothing that matters"
