"""Files and folders that hold no adapter that can be read, and adapters for something else."""

import os
import struct
from pathlib import Path

import numpy as np

from lora_edge import errors
from lora_edge.adapterfile import read_adapter, version
from lora_edge.library import Library
from lora_edge.tensorfile import TensorFile, read_header

from .case import (
    BLOCK,
    CONV,
    DAMAGED,
    MISMATCH,
    MISSING,
    NOT_FOUND,
    OUT,
    UNKNOWN,
    Case,
    Desk,
    K,
    Q,
    of,
    opened,
    pair,
)


def _raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), name: str = "a") -> bytes:
    text = f'"{name}":{{"dtype":{dtype!r},"shape":{list(shape)!r},"data_offsets":{list(offsets)!r}}}'  # type: ignore[call-overload]
    return text.replace("'", '"').encode()


BYTES = (  # (what, the file, the sentence after its name)
    ("empty", b"", "is empty"),
    (
        "a zip",
        b"PK\x03\x04" + bytes(60),
        r"is a pickle \(\.pt, \.bin, \.ckpt\) or another zip file; convert it first with `lora-edge convert`",
    ),
    ("an old pickle", b"\x80\x02" + bytes(60), r"is a pickle \(\.pt, .*\); convert it first with `lora-edge convert`"),
    ("a pickle", b"\x80\x04" + bytes(60), "is a pickle; convert it first with `lora-edge convert`"),
    ("a web page", b"<html>", "is a web page and not a tensor file; download it again, perhaps logged in"),
    (
        "a pointer",
        b"version https://git-lfs.github.com/spec/v1",
        "is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`",
    ),
    ("GGUF", b"GGUF" + bytes(60), "is a GGUF file; lora-edge reads safetensors"),
    ("JSON", b'{"error": "not found"}', "is JSON text and not a tensor file"),
    (
        "a length beyond the end",
        _raw(b"{}", length=99),
        "is truncated or no safetensors file: a header of 99 bytes in a file of 10",
    ),
    ("a header that is a list", _raw(b"[]"), r"is no safetensors file: its header does not begin with \{"),
    ("a header that is no JSON", _raw(b"{a}"), "has a header that is not JSON: a name should be at character 1"),
    ("a colon missing", _raw(b'{"a" 1}'), "has a header that is not JSON: : should be at character 5"),
    ("a comma at the end", _raw(b"{" + _entry() + b",}", bytes(4)), "has a header that is not JSON: a name should .*"),
    ("a comma missing", _raw(b'{"__metadata__":{}"a"}'), r"has a header that is not JSON: a comma or \} should be .*"),
    ("something after it", _raw(b"{}x"), "has a header that is not JSON: the end should be at character 2"),
    ("a name twice", _raw(b"{" + _entry() + b"," + _entry() + b"}", bytes(4)), "names 'a' twice in its header"),
    ("metadata twice", _raw(b'{"__metadata__":{},"__metadata__":{}}'), "names '__metadata__' twice in its header"),
    ("metadata of a list", _raw(b'{"__metadata__":[]}'), "has a `__metadata__` that is not a map of strings"),
    ("metadata of numbers", _raw(b'{"__metadata__":{"a":1}}'), "has a `__metadata__` that is not a map of strings"),
    (
        "much metadata",
        _raw(b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(10_001)) + b"}}"),
        "has more than 10000 strings in its `__metadata__`",
    ),
    (
        "a long header beyond ASCII",
        _raw(b'{"__metadata__":{"a":"' + "é".encode() * 5_000_000 + b'"}}'),
        "has a header of 10000025 bytes beyond ASCII; at most 10000000 are read",
    ),
    (
        "many tensors",
        _raw(b"{" + b",".join(_entry("F32", [0], [0, 0], str(n)) for n in range(50_001)) + b"}"),
        "names more than 50000 tensors, which no adapter has",
    ),
    ("a tensor of a number", _raw(b'{"a":1}'), "describes 'a' otherwise than by dtype, shape and data_offsets"),
    (
        "an unknown dtype",
        _raw(b"{" + _entry("F13") + b"}", bytes(4)),
        "has 'a' in dtype 'F13'; known are F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8, BOOL",
    ),
    (
        "a negative axis",
        _raw(b"{" + _entry(shape=[-1]) + b"}"),
        "gives 'a' a shape that is not a list of at most 32 counts",
    ),
    ("three offsets", _raw(b"{" + _entry(offsets=[0, 4, 4]) + b"}"), "gives 'a' data_offsets that are not two counts"),
    (
        "a huge shape",
        _raw(b"{" + _entry(shape=[2**62, 2]) + b"}"),
        rf"gives 'a' a shape too large for any memory: \[{2**62}, 2\]",
    ),
    (
        "another number of bytes",
        _raw(b"{" + _entry(shape=[2]) + b"}", bytes(4)),
        r"gives 'a' 4 bytes where shape \[2\] of F32 needs 8",
    ),
    (
        "overlapping",
        _raw(b"{" + _entry() + b"," + _entry(name="b") + b"}", bytes(4)),
        "has tensors that overlap at 'b'",
    ),
    ("a hole", _raw(b"{" + _entry(offsets=[4, 8]) + b"}", bytes(8)), "has tensors that leave a hole at 'a'"),
    ("cut", _raw(b"{" + _entry() + b"}", bytes(3)), "is truncated: its tensors take 4 bytes of data and it has 3"),
    ("longer", _raw(b"{" + _entry() + b"}", bytes(5)), "is too long: its tensors take 4 bytes of data and it has 5"),
)


def _huge_header(desk: Desk) -> Path:
    path = desk.bytes(_raw(b"{", length=100_000_001))
    os.truncate(path, 100_000_100)  # sparse
    return path


def _pipe(desk: Desk) -> Path:
    os.mkfifo(desk.folder / "f.safetensors")
    return desk.folder / "f.safetensors"


def _closed(desk: Desk) -> Path:
    """A path that cannot be opened even by those who may read everything."""
    return desk.folder / ("x" * 300)


def _cut_while_open(desk: Desk) -> object:
    file = read_adapter(path := desk.save(pair(rank=2000)))
    os.truncate(path, 500)
    return file.fit(desk.bundle.tables)


def _library(*names: str, find: str = "ink") -> object:
    def act(desk: Desk) -> object:
        for name in names:
            path = desk.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        return Library(desk.folder).find(find)

    return act


def _gone(desk: Desk) -> object:
    return Library(desk.folder / "gone").names()


PEFT_Q = f"base_model.model.{BLOCK}.attn1.to_q"

CASES = (
    *(
        Case(name, lambda desk, data=data: desk.open(desk.bytes(data)), DAMAGED, rf"{{file}} {sentence}")
        for name, data, sentence in BYTES
    ),
    Case(
        "a huge header",
        lambda desk: desk.open(_huge_header(desk)),
        DAMAGED,
        "{file} has a header of 100000001 bytes; at most 100000000 are read",
    ),
    Case("a pipe", lambda desk: desk.open(_pipe(desk)), DAMAGED, "{file} is not a regular file"),
    Case(
        "a name too long", lambda desk: TensorFile.open(_closed(desk)), DAMAGED, ".*x cannot be read: File name too .*"
    ),
    Case("a path too long", lambda desk: read_header(_closed(desk)), DAMAGED, ".*x cannot be read: File name too long"),
    Case("cut while open", _cut_while_open, DAMAGED, "{file} was cut while it was in use; load it again"),
    Case("nothing", lambda desk: desk.open(desk.folder / "f.safetensors"), NOT_FOUND, "{file} does not exist"),
    Case(
        "gone",
        lambda desk: version(desk.folder / "f.safetensors"),
        NOT_FOUND,
        "{file} does not exist or cannot be read",
    ),
    Case(
        "a folder of nothing",
        lambda desk: desk.open(desk.folder),
        NOT_FOUND,
        r"{folder} is a folder without adapter_model\.safetensors or pytorch_lora_weights\.safetensors",
    ),
    Case(
        "a folder of a pickle",
        lambda desk: (desk.bytes(b"PK\x03\x04" + bytes(60), "adapter_model.bin"), desk.open(desk.folder)),
        DAMAGED,
        r"{folder}/adapter_model\.bin is a pickle .* convert it first with `lora-edge convert`",
    ),
    # no adapter, or not for this bundle
    opened("no tensors", {}, UNKNOWN, "{file} holds no tensors"),
    opened(
        "a whole model",
        {"conv_in.weight": (8, 4, 3, 3), "conv_in.bias": (8,)},
        UNKNOWN,
        r"{file} holds no adapter but 'conv_in\.(weight|bias)', 'conv_in\..*' and so on; is it a whole model\?",
    ),
    opened(
        "a tensor in two spellings",
        {f"{PEFT_Q}.lora_A.weight": (2, 8), f"{PEFT_Q}.lora_A.default.weight": (2, 8)},
        MISMATCH,
        rf"{{file}} gives the same tensor twice: '{PEFT_Q}\.lora_A\.(default\.)?weight' and '.*'",
    ),
    opened(
        "a layer in two namings",
        pair() | {f"{PEFT_Q}.lora_A.weight": (2, 8), f"{PEFT_Q}.lora_B.weight": (8, 2)},
        MISMATCH,
        rf"{{file}}: 2 of 2 modules cannot be used: '{PEFT_Q}' means the same layer as '.*' and '.*'; '{Q}' means .*",
    ),
    opened(
        "an unknown layer",
        pair() | of("lora_unet_nothing", {"alpha": ()}),
        MISMATCH,
        r"{file}: 1 of 2 modules cannot be used: 'lora_unet_nothing' names no layer of the bundle(; made for .*)?",
    ),
    opened(
        "many unknown layers",
        {f"lora_unet_nothing{index}.lora_down.weight": (2, 8) for index in range(9)},
        MISMATCH,
        r"{file}: 9 of 9 modules cannot be used: ('lora_unet_nothing\d' names no layer of the bundle; ){3}and 6 more.*",
    ),
    opened(
        "a file for SDXL",
        of("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", {"lora_down.weight": (2, 2048)}),
        MISMATCH,
        r"{file}: 1 of 1 modules .*; made for SDXL, this bundle is custom \(cross-attention width 16\)",
    ),
    opened(
        "a layer of two components",
        of("base_model.model.twin", {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}),
        MISMATCH,
        r"{file}: .*'base_model.model.twin' may mean twin of unet or twin of text_encoder; say which with component=.*",
    ),
    opened(
        "a layer of another component",
        pair(OUT),
        MISMATCH,
        rf"{{file}}: 1 of 1 modules cannot be used: '{OUT}' belongs to unet and not to text_encoder(; made for .*)?",
        component="text_encoder",
    ),
    opened(
        "another component",
        pair(),
        MISSING,
        "the bundle has no 'vae' that takes adapters; it has unet, text_encoder",
        component="vae",
    ),
    opened(
        "too large",
        pair(rank=100),
        errors.AdapterTooLarge,
        r"{file} would take 0\.0 MB in 100 lanes in memory, and 0\.0 MB are allowed; make it smaller with "
        "`lora-edge resize`, or write it into a checkpoint with `lora-edge bake`",
        max_bytes=1000,
    ),
    opened(
        "too large and of full rank",
        of(CONV, {"diff": (8, 4, 3, 3)}),
        errors.AdapterTooLarge,
        r"{file} would take 0\.0 MB in 8 lanes, 0\.0 MB of it in 1 slots of full rank in memory, and .*",
        max_bytes=1000,
    ),
    opened(
        "errors of several kinds",
        of(Q, {"lora_down.weight": (2, 8)}) | of(K, {"extra": np.zeros(1)}),
        MISMATCH,
        r"{file}: 2 of 2 modules cannot be used: .* has extra, which no known kind uses; .* has down but no up.*",
    ),
    # folders of adapters
    Case(
        "an unknown name",
        _library("inky.safetensors"),
        NOT_FOUND,
        "there is no adapter 'ink' in {folder}; is it 'inky'\\?",
    ),
    Case(
        "a name of two files",
        _library("a/ink.safetensors", "b/ink.safetensors"),
        NOT_FOUND,
        r"'ink' may be any of a/ink\.safetensors or b/ink\.safetensors in {folder}; rename all but one",
    ),
    Case(
        "a name of a pickle",
        _library("ink.pt"),
        NOT_FOUND,
        r"'ink' is the pickle ink\.pt in {folder}; run `lora-edge convert` on it",
    ),
    Case("no folder", _gone, NOT_FOUND, "the adapter folder {folder}/gone does not exist"),
)
