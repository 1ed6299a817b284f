"""Files of 5 to 50 MB for Stable Diffusion 1.5's own widths, whole and hostile: memory and time where they count."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lora_edge.adapterfile import read_adapter
from lora_edge.bundle import Bundle
from lora_edge.families import tables
from lora_edge.slots import Slot

from .draft import Draft
from .seeds import Seed
from .values import odd

WIDE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
MAX_BYTES = 1 << 30
SD1 = tables("SD1")


def load(path: Path, bundle: Bundle, strict: bool) -> object:
    """Fit to the layers of SD1; no kind here asks for the base's weights."""
    return read_adapter(path).fit(SD1, strict=strict, max_bytes=MAX_BYTES)


def _right(name: str, make: Callable[[], Draft]) -> tuple[str, Callable[[], Seed]]:
    return name, lambda: Seed(name, "file", made := make(), made.dump(), load, SD1)


def _wrong(name: str, change: Callable[[Draft], bytes]) -> tuple[str, Callable[[], Seed]]:
    return name, lambda: Seed(name, "file", made := lora(16, "F16"), change(made), load, SD1)


def _layers() -> Iterator[tuple[str, Slot]]:
    for table, prefix in zip(SD1, ("lora_unet", "lora_te"), strict=False):
        yield from ((f"{prefix}_{slot.name.replace('.', '_')}", slot) for slot in table)


def lora(rank: int, dtype: str) -> Draft:
    """Every layer of the model, about a thousand tensors."""
    made = Draft(metadata={"ss_network_module": "networks.lora"})
    for name, slot in _layers():
        _append(made, f"{name}.lora_down.weight", dtype, [rank, *slot.weight_shape[1:]])
        _append(made, f"{name}.lora_up.weight", dtype, [slot.out_features, rank, *[1 for _ in slot.kernel or ()]])
        made.add(f"{name}.alpha", "F32", np.array(rank / 2))
    return made


def loha(rank: int, dtype: str) -> Draft:
    """Every layer, about two thousand tensors, of rank^2 lanes each."""
    made = Draft()
    for name, slot in _layers():
        for half in ("hada_w1", "hada_w2"):
            _append(made, f"{name}.{half}_a", dtype, [slot.out_features, rank])
            _append(made, f"{name}.{half}_b", dtype, [rank, slot.patch])
        made.add(f"{name}.alpha", "F32", np.array(rank / 2))
    return made


def one_layer(dtype: str, size: int) -> Draft:
    """One layer with a rank far beyond its own."""
    made, (name, slot) = Draft(), next(iter(_layers()))
    rank = size // WIDE[dtype] // (slot.patch + slot.out_features)
    _append(made, f"{name}.lora_down.weight", dtype, [rank, *slot.weight_shape[1:]])
    _append(made, f"{name}.lora_up.weight", dtype, [slot.out_features, rank, 1, 1])
    return made


def _append(made: Draft, name: str, dtype: str, shape: list[int]) -> None:
    """A tensor of small numbers, the same ones again and again."""
    count, start = int(np.prod(shape)), len(made.data)
    made.data += (odd(dtype, 0.25) + odd(dtype, -0.5)) * (count // 2) + odd(dtype, 0.125) * (count % 2)
    offsets = [start, len(made.data)]
    made.entries.append((name, {"dtype": dtype, "shape": shape, "data_offsets": offsets}))


def _with_a_nan_at_the_end(made: Draft) -> bytes:
    name = max(range(len(made.entries)), key=lambda index: made.entries[index][1]["data_offsets"][1] - 4 * (index % 3))
    part = made.bytes_of(name)
    made.data[part.stop - 4 : part.stop] = b"\xff" * 4
    return made.dump()


def _with_every_shape_turned(made: Draft) -> bytes:
    for _, item in made.entries:
        item["shape"] = item["shape"][::-1]
    return made.dump()


def _renamed(made: Draft) -> bytes:
    made.entries = [(f"x{name}", item) for name, item in made.entries]
    return made.dump()


HOSTILE: dict[str, Callable[[Draft], bytes]] = {
    "cut in half": lambda made: made.dump()[: len(made.data) // 2],
    "a byte more": lambda made: made.dump() + b"\0",
    "a NaN in the last tensor": _with_a_nan_at_the_end,
    "every shape turned": _with_every_shape_turned,
    "every layer unknown": _renamed,
    "header length of 2**63": lambda made: made.dump(length=2**63),
    "header length of 10 MB": lambda made: made.dump(length=10_000_000),
    "every tensor in one place": lambda made: Draft(
        [(name, {**item, "data_offsets": [0, 4]}) for name, item in made.entries], made.data
    ).dump(),
}


def _of_nothing(count: int) -> Draft:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return Draft([(f"lora_unet_{index}.alpha", empty) for index in range(count)])


class _Raw(Draft):
    """A header that is written out."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def dump(self, header: bytes | None = None, length: int | None = None) -> bytes:
        return super().dump(self._text, length)


HEADERS: dict[str, Callable[[], Draft]] = {
    "header of 40,000 tensors of nothing": lambda: _of_nothing(40_000),
    "header of 100,000 tensors of nothing": lambda: _of_nothing(100_000),
    "header of one string of 10 MB": lambda: Draft(metadata={"a": "x" * 10_000_000}),
    "header of 9 MB with an emoji": lambda: _Raw(
        b'{"__metadata__":{"a":"' + "\U0001f600".encode() + b"x" * 9_000_000 + b'"}}'
    ),
    "header of 9,000 strings": lambda: Draft(metadata={str(index): "x" * 500 for index in range(9_000)}),
    "header of 1,000,000 strings": lambda: Draft(metadata={str(index): "" for index in range(1_000_000)}),
    "header of a million lists": lambda: _Raw(b'{"a":[' + b"[]," * 2_000_000),
    "header of a million objects": lambda: _Raw(b'{"a":{"b":' + b'{"a":' * 1_000_000),
    "header of a million lists in one entry": lambda: _Raw(b'{"a":{"b":[' + b"[]," * 2_000_000 + b"0]}}"),
    "header of one number": lambda: _Raw(b'{"a":' + b"9" * 8_000_000 + b"}"),
    "header of spaces": lambda: _Raw(b"{" + b" " * 10_000_000 + b"}"),
    "header of quotes": lambda: _Raw(b'{"' + b'\\"' * 5_000_000),
}

ORDINARY = "lora of rank 16, F16"
LARGE: Mapping[str, Callable[[], Seed]] = dict(  # each of them is made when it is asked for
    (
        *(_right(f"lora of rank 16, {dtype}", partial(lora, 16, dtype)) for dtype in WIDE),
        _right("lora of rank 64, F16", partial(lora, 64, "F16")),
        _right("loha of rank 4, F16", partial(loha, 4, "F16")),
        *(_right(f"one layer of 20 MB, {dtype}", partial(one_layer, dtype, 20_000_000)) for dtype in WIDE),
        *(_wrong(f"{ORDINARY}: {name}", change) for name, change in HOSTILE.items()),
        *(_right(name, make) for name, make in HEADERS.items()),
    )
)
