"""What is wrong with adapter files of ONNX Runtime."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge import ortadapter
from lora_edge.ortadapter import model_version, parameters, read_onnx_adapter
from lora_edge.ortfile import OrtFile
from lora_edge.runtime.session import export_onnx_adapter
from lora_edge.slots import ABI_VERSION

from .case import DAMAGED, MISMATCH, PACK, VALUE, Case, Desk
from .packs import AGAIN, DOWN, UP, WORD, Tensors, fitted


def _ort(desk: Desk, change: Callable[[Tensors], Any]) -> Path:
    """One of ONNX Runtime's, changed and written again by its own writer."""
    tensors: Tensors = dict(parameters(fitted(desk), desk.bundle)["unet"])
    change(tensors)
    versions = tensors.pop("abi", ABI_VERSION), tensors.pop("model", model_version(desk.bundle))
    export_onnx_adapter(desk.folder / "f.onnx_adapter", tensors, *versions)
    return desk.folder / "f.onnx_adapter"


def ort(name: str, change: Callable[[Tensors], Any], error: type, sentence: str, **options: Any) -> Case:
    def act(desk: Desk) -> Any:
        return desk.open(_ort(desk, change), **options)

    return Case(f"onnx_adapter: {name}", act, error, rf"{{folder}}/f\.onnx_adapter {sentence}")


def damaged(name: str, data: bytes, what: str) -> Case:
    def act(desk: Desk) -> Any:
        return OrtFile(desk.bytes(data, "f.onnx_adapter"))

    return Case(f"onnx_adapter: {name}", act, DAMAGED, rf"{{folder}}/f\.onnx_adapter {what}")


def broken(name: str, change: Callable[[bytearray], Any], what: str) -> Case:
    """Bytes of a right file changed."""

    def act(desk: Desk) -> Any:
        path = _ort(desk, lambda tensors: None)
        made = bytearray(path.read_bytes())
        change(made)
        path.write_bytes(made)
        return OrtFile(path)

    sentence = rf"{{folder}}/f\.onnx_adapter is damaged or no \.onnx_adapter file: {what}"
    return Case(f"onnx_adapter: {name}", act, DAMAGED, sentence)


def _put(data: bytearray, at: int, value: int) -> None:
    data[at : at + 4] = (value % 2**32).to_bytes(4, "little")


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _field(data: bytes, table: int, field: int) -> int:
    """Where a field of a table lies (flatbuffers.dev, "Internals")."""
    vtable = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    return table + int.from_bytes(data[vtable + 4 + 2 * field : vtable + 6 + 2 * field], "little")


def _vector(data: bytes) -> int:
    """Where the list of parameters begins, at its length."""
    place = _field(data, _word(data, 0), 3)
    return place + _word(data, place)


def _parameter(data: bytes, index: int) -> int:
    place = _vector(data) + 4 + 4 * index
    return place + _word(data, place)


def _share(data: bytearray) -> None:
    """All parameters are the first one."""
    target = _parameter(data, 0)
    for index in range(_word(data, _vector(data))):
        place = _vector(data) + 4 + 4 * index
        _put(data, place, target - place)


def _overlap(desk: Desk) -> Any:
    """Every parameter has the bytes and the shape of the largest, under its own name."""
    path = desk.folder / "f.onnx_adapter"
    export_onnx_adapter(path, {"a": np.ones(5000, "f4"), "b": np.ones(1, "f4"), "c": np.ones(1, "f4")}, 1, 1)
    data = bytearray(path.read_bytes())
    count = _word(data, _vector(data))
    largest = max((_parameter(data, index) for index in range(count)), key=lambda at: _word(data, _at(data, at, 3)))
    for index in range(count):
        table = _parameter(data, index)
        for field in (1, 3):
            place = _field(data, table, field)
            if _at(data, largest, field) > place:
                _put(data, place, _at(data, largest, field) - place)
    path.write_bytes(data)
    return OrtFile(path)


def _at(data: bytes, table: int, field: int) -> int:
    place = _field(data, table, field)
    return place + _word(data, place)


def _cut(desk: Desk) -> Any:
    file = OrtFile(path := _ort(desk, lambda tensors: None))
    os.truncate(path, 64)
    return file.read(DOWN)


def _twins(desk: Desk) -> Any:
    """A bundle with two components of the same layers."""
    unet = desk.bundle.component("unet")
    twin = replace(unet, name="unet_2", table=replace(unet.table, component="unet_2"))
    both = replace(desk.bundle, components={**desk.bundle.components, "unet_2": twin})
    return read_onnx_adapter(_ort(desk, lambda tensors: None), both)


def _two_gigabytes(desk: Desk) -> Any:
    """Without having them: the same zeros again and again."""
    most, ortadapter.MAX_BYTES = ortadapter.MAX_BYTES, 10
    try:
        return parameters(fitted(desk), desk.bundle)
    finally:
        ortadapter.MAX_BYTES = most


NO_FILE = r"is damaged or no \.onnx_adapter file: "

CASES = (
    ort("another contract", lambda t: t.update(abi=9), PACK, f"was packed with abi 9; this version reads 1: {AGAIN}"),
    ort(
        "another bundle",
        lambda t: t.update(model=1),
        PACK,
        rf"was packed for another bundle: for model version 1, where 'small' has \d+; {AGAIN}",
    ),
    ort(
        "a tensor of nobody",
        lambda t: t.update(strange=np.ones(1, np.float32)),
        MISMATCH,
        f"holds what no component has inputs for, such as 'strange'; {AGAIN}",
    ),
    ort(
        "another type",
        lambda t: t.update({UP: t[UP].astype(np.int64)}),
        MISMATCH,
        f"holds '{UP}' in int64 where float32 is needed",
    ),
    ort(
        "a NaN",
        lambda t: t.update({UP: t[UP] * np.float32("nan")}),
        VALUE,
        f"holds numbers that are not finite in '{UP}'; {AGAIN}",
    ),
    ort(
        "no scales",
        lambda t: t.pop("lora.scales"),
        MISMATCH,
        r"needs lora\.scales of shape \[1, 2\], one number per lane that lora\.ranks counts",
    ),
    Case(
        "onnx_adapter: two components",
        _twins,
        MISMATCH,
        r"{folder}/f\.onnx_adapter may be for unet or unet_2; say which with component=",
    ),
    Case(
        "onnx_adapter: a word",
        lambda desk: parameters(fitted(desk, WORD), desk.bundle),
        MISMATCH,
        r"o teaches words \(cat\), which \.onnx_adapter files have no place for",
    ),
    Case(
        "onnx_adapter: too large",
        _two_gigabytes,
        MISMATCH,
        r"o takes \d+ bytes for (unet|text_encoder), and an \.onnx_adapter holds 2 GB",
    ),
    Case("onnx_adapter: a folder", lambda desk: OrtFile(desk.folder), DAMAGED, "{folder} is not a regular file"),
    Case(
        "onnx_adapter: nothing",
        lambda desk: OrtFile(desk.folder / "gone"),
        DAMAGED,
        "{folder}/gone cannot be read: .*No such file or directory.*",
    ),
    Case(
        "onnx_adapter: cut while open",
        _cut,
        DAMAGED,
        r"{folder}/f\.onnx_adapter was cut while it was in use; load it again",
    ),
    damaged("another file", bytes(64), NO_FILE + "it does not say TORT"),
    damaged("cut", b"\x08\0\0\0TORT", NO_FILE + "something lies outside the file"),
    broken("another version", lambda d: _put(d, _field(d, _word(d, 0), 0), 7), "its format is 7, and 1 is read"),
    broken(
        "too many tensors",
        lambda d: _put(d, _vector(d), len(d) // 8),
        r"it counts \d+ tensors, which it is too small for",
    ),
    broken("more tensors than bytes", lambda d: _put(d, _vector(d), 2**31), "something lies outside the file"),
    broken("one tensor again and again", _share, "it names '.*' twice"),
    Case(
        "onnx_adapter: overlapping", _overlap, DAMAGED, r"{folder}/f\.onnx_adapter " + NO_FILE + "its tensors overlap"
    ),
    broken(
        "a name that is no text", lambda d: d.__setitem__(_at(d, _parameter(d, 0), 0) + 4, 255), "a name is not UTF-8"
    ),
    broken(
        "a type of nobody", lambda d: _put(d, _field(d, _parameter(d, 0), 2), 99), "'.*' is neither float32 nor int64"
    ),
    broken(
        "another shape",
        lambda d: _put(d, _at(d, _parameter(d, 0), 1) + 4, 77),
        r"'.*' has \d+ bytes for the shape \[77.*\]",
    ),
    ort(
        "a long name",
        lambda t: t.update({"x" * 2000: t[UP]}),
        DAMAGED,
        NO_FILE + "something has 2000 items where 1024 are the most",
    ),
)
