"""Hostile files, by name: programs for the pickle machine written by hand, around good tensors.

`watch.py` converts each of them in a process of its own.
"""

import base64
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

CANARY = "canary"
COMMAND = f"touch {CANARY}"


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(data)) + data


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def archive(program: bytes, numbers: bytes = bytes(24), method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """torch's zip form around a pickle, with one storage of six floats."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in {"data.pkl": program, "byteorder": b"little", "data/0": numbers, **more}.items():
            made.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy(*programs: bytes, numbers: bytes = b"") -> bytes:
    """torch's older form; the first programs take the places of its five pickles, from the first."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    usual = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, facts, {}, [])]
    return b"".join([*programs, *usual[len(programs) :]]) + numbers


def stored(kind: bytes = named("torch", "FloatStorage"), key: bytes = text("0"), size: int = 6) -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + number(size) + b"tQ"


def tensor(
    shape: bytes = b"K\x02K\x03\x86", strides: bytes = b"K\x03K\x01\x86", offset: int = 0, storage: bytes = b""
) -> bytes:
    call = named("torch._utils", "_rebuild_tensor_v2") + b"(" + (storage or stored()) + number(offset) + shape + strides
    return call + b"\x89" + named("collections", "OrderedDict") + b")RtR"


def sized(*axes: int) -> bytes:
    return b"(" + b"".join(map(number, axes)) + b"t"


def entry(name: str, value: bytes) -> bytes:
    return text(name) + value + b"s"


def tree(*entries: bytes) -> bytes:
    """A dict with one good tensor, and whatever comes besides."""
    return b"\x80\x02}" + entry("good", tensor()) + b"".join(entries) + b"."


def with_value(value: bytes) -> bytes:
    return archive(tree(entry("x", value)))


def calling(module: str, name: str) -> bytes:
    return with_value(named(module, name) + text(COMMAND) + b"\x85R")


def picture(chunk: bytes, keyword: bytes = b"sd-ti-embedding", check: int | None = None) -> bytes:
    body = b"tEXt" + keyword + b"\0" + chunk
    checksum = zlib.crc32(body) if check is None else check
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", len(body) - 4) + body + struct.pack(">L", checksum)


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """A zip with bytes changed, counted from one of its records."""
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


def laughs(first: bytes, times: int, each: int) -> bytes:
    """A list of `each` references to a list of `each` references to ... `first`, in a tuple of them all."""
    made = b"(" + first + b"q\x00"
    for level in range(times):
        made += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * (each - 1) + b"eq" + bytes([level + 1])
    return made + b"t"


def local(name: str) -> bytes:
    """The header that a zip has before the bytes of an empty entry."""
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name.encode()


GOOD = archive(tree())
CALLED = {
    f"asks for {module}.{name}": (module, name)
    for module, name in [
        ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
        ("builtins", "getattr"), ("builtins", "__import__"), ("__builtin__", "eval"), ("__builtin__", "apply"),
        ("torch", "load"), ("torch.os", "system"), ("torch.serialization", "load"), ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"), ("torch.jit", "load"), ("torch._utils", "_rebuild_sparse_tensor"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy", "load"), ("_codecs", "encode"), ("codecs", "open"),
        ("copyreg", "_reconstructor"), ("copyreg", "add_extension"), ("importlib", "import_module"),
        ("functools", "partial"), ("operator", "attrgetter"), ("types", "FunctionType"), ("marshal", "loads"),
        ("pickle", "loads"), ("shutil", "rmtree"), ("webbrowser", "open"), ("ctypes", "CDLL"), ("pty", "spawn"),
        ("runpy", "run_path"),
        ("torch", "ComplexFloatStorage"), ("lora_edge.tools.convert", "convert"),
        ("torch._utils", "_rebuild_tensor_v2 "),
    ]
}  # fmt: skip

ATTACKS: dict[str, Callable[[], bytes]] = {
    **{name: lambda pair=pair: calling(*pair) for name, pair in CALLED.items()},  # type: ignore[misc]
    "a real pickle of os.system": lambda: archive(pickle.dumps({"x": Calls(os.system, COMMAND)}, 2)),
    "the same in protocol 4": lambda: archive(pickle.dumps({"x": Calls(os.system, COMMAND)}, 4)),
    "the same in the older form": lambda: legacy(*[pickle.dumps(Calls(os.system, COMMAND), 2)]),
    "in the facts of the machine": lambda: legacy()[:20] + pickle.dumps(Calls(os.system, COMMAND), 2),
    "instead of the tree": lambda: legacy(*_usual(3), pickle.dumps(Calls(os.system, COMMAND), 2)),
    "instead of the keys": lambda: legacy(*_usual(4), pickle.dumps(Calls(os.system, COMMAND), 2)),
    "a bare pickle": lambda: pickle.dumps(Calls(os.system, COMMAND), 2),
    "INST": lambda: archive(b"(" + text(COMMAND) + b"ios\nsystem\n."),
    "OBJ": lambda: archive(b"(" + named("collections", "OrderedDict") + b"o."),
    "NEWOBJ": lambda: archive(named("subprocess", "Popen") + text(COMMAND) + b"\x85\x81."),
    "NEWOBJ_EX": lambda: archive(named("collections", "OrderedDict") + b")}\x92."),
    "EXT1": lambda: archive(b"\x82\x01."),
    "EXT4": lambda: archive(b"\x84\x01\x00\x00\x00."),
    "BUILD of an OrderedDict": lambda: with_value(
        named("collections", "OrderedDict") + b")R}" + entry("__setstate__", text(COMMAND)) + b"b"
    ),
    "BUILD of a tensor": lambda: with_value(tensor() + b"}" + entry("__class__", text("os")) + b"b"),
    "BUILD of a dict": lambda: with_value(b"}}b"),
    "BUILD with slots": lambda: with_value(named("collections", "OrderedDict") + b")R}}\x86b"),
    "STACK_GLOBAL of os.system": lambda: with_value(text("os") + text("system") + b"\x93"),
    "STACK_GLOBAL with dots": lambda: with_value(text("torch") + text("os.system") + b"\x93"),
    "STACK_GLOBAL with spaces": lambda: with_value(text("torch._utils _rebuild_tensor_v2") + text("") + b"\x93"),
    "STACK_GLOBAL of numbers": lambda: with_value(b"K\x01K\x02\x93"),
    "a call of text": lambda: with_value(text("os.system") + text(COMMAND) + b"\x85R"),
    "a call of a storage type": lambda: with_value(named("torch", "FloatStorage") + b")R"),
    "a call without a tuple": lambda: with_value(named("collections", "OrderedDict") + b"]R"),
    "an OrderedDict of arguments": lambda: with_value(named("collections", "OrderedDict") + b"]\x85R"),
    "PERSID": lambda: archive(b"P0\n."),
    "a persistent number": lambda: with_value(b"K\x07Q"),
    "a persistent module": lambda: with_value(b"(" + text("module") + named("os", "system") + b"NNtQ"),
    "a storage type in text": lambda: with_value(tensor(storage=stored(text("FloatStorage")))),
    "a storage key that is a number": lambda: with_value(tensor(storage=stored(key=b"K\x00"))),
    "a storage key that is a path": lambda: with_value(tensor(storage=stored(key=text("../../../etc/passwd")))),
    "a storage of negative size": lambda: with_value(tensor(storage=stored(size=-1))),
    "a storage in two ways": lambda: with_value(tensor(storage=stored(size=5))),
    "a storage larger than its entry": lambda: archive(tree(), bytes(20)),
    "a parameter of text": lambda: with_value(named("torch._utils", "_rebuild_parameter") + text("x") + b"\x88}\x87R"),
    "a tensor with hooks": lambda: with_value(
        tensor().replace(named("collections", "OrderedDict") + b")R", b"}" + entry("x", b"N"))
    ),
    "a set of text": lambda: with_value(named("builtins", "set") + text("abc") + b"\x85R"),
    "a shape beyond memory": lambda: with_value(tensor(sized(2**40, 2**40), sized(0, 0))),
    "a shape of zeros": lambda: with_value(tensor(sized(2**40, 0, 2**40), sized(0, 0, 0))),
    "a shape of 33 axes": lambda: with_value(tensor(sized(*[1] * 33), sized(*[0] * 33))),
    "a shape of True": lambda: with_value(tensor(b"\x88\x85", sized(1))),
    "shape and strides of two lengths": lambda: with_value(tensor(sized(2, 3), sized(1))),
    "strides beyond the storage": lambda: with_value(tensor(sized(2, 3), sized(4, 1))),
    "negative strides": lambda: with_value(tensor(sized(2, 3), sized(-3, 1))),
    "an offset beyond the storage": lambda: with_value(tensor(offset=1)),
    "a negative offset": lambda: with_value(tensor(offset=-1)),
    "an expanded tensor": lambda: with_value(tensor(sized(2**30), sized(0))),
    "a million names of a storage": lambda: with_value(
        b"(" + tensor(sized(2**12), sized(0)) + b"q\x00](" + b"h\x00" * 10_000 + b"et"
    ),
    "a billion laughs": lambda: with_value(laughs(b"](K\x01K\x02e", 20, 10)),
    "a billion laughs in empty lists": lambda: with_value(laughs(b"]", 20, 10)),
    "a billion laughs in text": lambda: with_value(laughs(text("ha" * 10_000), 4, 10)),
    "long names again and again": lambda: with_value(b"}" + entry("x" * 900, b"](" + b"K\x01" * 50_000 + b"e")),
    "a list in itself": lambda: with_value(b"]q\x00h\x00a"),
    "a dict in itself": lambda: with_value(b"}q\x00" + entry("x", b"h\x00")),
    "100,000 lists deep": lambda: with_value(b"]" * 100_000 + b"a" * 99_999),
    "100,000 tuples deep": lambda: with_value(b")" + b"\x85" * 100_000),
    "marks without end": lambda: archive(b"(" * 100_000),
    "too many instructions": lambda: archive(b"\x80\x02]" + b"]a" * 300_000 + b"."),
    "a set copied again and again": lambda: with_value(
        b"(](" + b"K\x01" * 1000 + b"eq\x00](" + (named("builtins", "set") + b"h\x00\x85R") * 1000 + b"et"
    ),
    "a module of 1,000 attributes": lambda: with_value(
        named("torch.nn.modules.container", "ParameterDict") + b")R}"
        + b"".join(entry(f"_{count}", b"N") for count in range(1000)) + b"b"
    ),
    "keys that collide": lambda: with_value(
        b"}" + b"".join(number(count * (2**61 - 1)) + b"Ns" for count in range(2, 99))
    ),
    "a list as key": lambda: with_value(b"}]Ns"),
    "items without a value": lambda: with_value(b"}(" + text("x") + b"u"),
    "items of a list": lambda: with_value(b"](" + text("x") + b"Nu"),
    "LONG4": lambda: with_value(b"\x8b\xff\xff\xff\x7f"),
    "LONG in text": lambda: with_value(b"L" + b"9" * 100_000 + b"L\n"),
    "INT in text": lambda: with_value(b"I" + b"9" * 100_000 + b"\n"),
    "STRING with an escape": lambda: with_value(b"S'\\^'\n"),
    "a number beyond 64 bits": lambda: archive(tree(entry("x.down", tensor()), entry("x.alpha", number(2**70)))),
    "BINUNICODE8 of 2^60 bytes": lambda: with_value(b"\x8d" + struct.pack("<Q", 2**60)),
    "BINBYTES8 of 2^60 bytes": lambda: with_value(b"\x8e" + struct.pack("<Q", 2**60)),
    "BYTEARRAY8": lambda: with_value(b"\x96" + struct.pack("<Q", 2**62)),
    "bytes": lambda: with_value(b"C\x03abc"),
    "a frame of 2^60 bytes": lambda: archive(b"\x80\x04\x95" + struct.pack("<Q", 2**60)),
    "a memo index of 2^31": lambda: archive(b"\x80\x02}r\xff\xff\xff\x7f."),
    "a memo never written": lambda: archive(b"\x80\x02h\x09."),
    "an empty stack": lambda: archive(b"\x80\x02R."),
    "no end": lambda: archive(b"\x80\x02}"),
    "two values": lambda: archive(b"\x80\x02}}."),
    "no pickle": lambda: archive(b""),
    "an unknown instruction": lambda: archive(b"\xff\xfe."),
    "a function as value": lambda: with_value(named("collections", "OrderedDict")),
    "a storage as value": lambda: with_value(stored()),
    "a name of half a letter": lambda: archive(tree(entry("\ud800", tensor()))),
    "text of half a letter": lambda: with_value(text("\udfff")),
    "a name of 10,000 letters": lambda: archive(tree(entry("x" * 10_000, tensor()))),
    "the reserved name": lambda: archive(tree(entry("__metadata__", tensor()))),
    "one name twice": lambda: archive(tree(entry("a.b", tensor()), entry("a", b"}" + entry("b", tensor())))),
    "8 MB of text": lambda: with_value(text("\U0001f4a5" + "x" * 8_000_000)),
    "a pickle of 9 MB": lambda: archive(tree(entry("x", text("x" * 9_000_000)))),
    "compressed": lambda: archive(tree(), method=zipfile.ZIP_DEFLATED),
    "a compressed bomb": lambda: archive(bytes(2**27), method=zipfile.ZIP_DEFLATED),
    "a size that is too large": lambda: patched(GOOD, b"PK\x01\x02", 20, struct.pack("<2L", 2**30, 2**30)),
    "a compressed size of its own": lambda: patched(GOOD, b"PK\x01\x02", 20, struct.pack("<L", 3)),
    "an encrypted entry": lambda: patched(GOOD, b"PK\x01\x02", 8, b"\x01"),
    "an entry at the place of another": lambda: patched(GOOD, b"PK\x01\x02", 42, bytes(4), which=2),
    "a header outside the file": lambda: patched(GOOD, b"PK\x01\x02", 42, struct.pack("<L", 2**31), which=2),
    "another name at the entry": lambda: patched(GOOD, b"PK\x01\x02", 46, b"Archive"),
    "one entry twice": lambda: archive(tree(), **{"data/1": b""}).replace(b"archive/data/1", b"archive/data/0"),
    "an entry in another": lambda: patched(
        archive(tree(), local("archive/data/1"), **{"data/1": b""}), b"PK\x01\x02", 42,
        struct.pack("<L", archive(tree(), local("archive/data/1")).index(local("archive/data/1"))), which=3,
    ),
    "a folder of 2^31 bytes": lambda: patched(GOOD, b"PK\x05\x06", 12, struct.pack("<L", 2**31)),
    "a folder outside the file": lambda: patched(GOOD, b"PK\x05\x06", 16, struct.pack("<L", 2**31)),
    "a folder in 64 bits that is not there": lambda: patched(GOOD, b"PK\x05\x06", 12, b"\xff" * 8),
    "a torn folder": lambda: patched(GOOD, b"PK\x01\x02", 0, b"XX", which=1),
    "a torn file": lambda: GOOD[:-7],
    "a zip of something else": lambda: archive(tree()).replace(b"data.pkl", b"data.txt"),
    "two pickles": lambda: archive(tree(), **{"more/data.pkl": tree()}),
    "TorchScript": lambda: archive(tree(), **{"constants.pkl": b""}),
    "big-endian": lambda: GOOD.replace(b"little", b"biggie"),
    "an older form without its storage": lambda: legacy(*_usual(3), tree(), pickle.dumps(["0"], 2)),
    "an older form with more storages": lambda: legacy(*_usual(3), pickle.dumps({}, 2), pickle.dumps(["0"], 2)),
    "an older form that goes on": lambda: legacy(numbers=bytes(100)),
    "an older form of 2^62 numbers": lambda: legacy(
        *_usual(3), tree(entry("x", tensor(storage=stored(key=text("1"), size=2**60)))), pickle.dumps(["0", "1"], 2),
        numbers=struct.pack("<Q", 6) + bytes(24) + struct.pack("<Q", 2**60),
    ),
    "an older form from a big-endian machine": lambda: legacy(*_usual(2), pickle.dumps({"little_endian": False}, 2)),
    "a picture without an embedding": lambda: picture(b"x", b"parameters"),
    "a picture whose text is not base64": lambda: picture(b"???"),
    "a picture of deep JSON": lambda: picture(base64.b64encode(b"[" * 100_000)),
    "a picture of ragged numbers": lambda: picture(base64.b64encode(b'{"x": {"TORCHTENSOR": [[1], [2, 3]]}}')),
    "a picture of words for numbers": lambda: picture(base64.b64encode(b'{"x": {"TORCHTENSOR": ["a", {}]}}')),
    "a picture with a false checksum": lambda: picture(base64.b64encode(b"{}"), check=0),
    "a picture with 5 MB of text": lambda: picture(b"A" * 5_000_000),
}  # fmt: skip


def _usual(count: int) -> list[bytes]:
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, facts, {}, [])][:count]
