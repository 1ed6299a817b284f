"""Headers that lie: offsets, shapes, dtypes and the JSON itself."""

import json
from collections.abc import Callable, Mapping
from math import prod
from random import Random
from typing import Any

from lora_edge.tensorfile import DTYPES

from .draft import Draft

NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 1.0, 1e308, 0.5),
    *(True, None, "1", [], {}, [1]),
)
WRONG: tuple[Any, ...] = (None, True, 3, -1, 1e300, "", "x", [], ["x"], {}, {"x": 1}, [[1]], "\ud800")
PLACES = ("dtype", "shape", "data_offsets")


def _pick(rng: Random, made: Draft) -> tuple[int, dict[str, Any]]:
    index = rng.randrange(len(made.entries))
    return index, made.entries[index][1]


def overlapping_offsets(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    _, other = _pick(rng, made)
    start, end = other["data_offsets"]
    shift = rng.choice((0, 1, -1, item["data_offsets"][1] - item["data_offsets"][0]))
    item["data_offsets"] = rng.choice(([start, end], [start + shift, end + shift], [0, len(made.data)]))
    return made.dump()


def extreme_offsets(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    item["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
    return made.dump()


def reversed_offsets(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    item["data_offsets"].reverse()
    return made.dump()


def a_gap(rng: Random, made: Draft) -> bytes:
    """Bytes that no tensor has."""
    index, item = _pick(rng, made)
    at, size = item["data_offsets"][0], rng.choice((1, 4, 4096))
    made.data[at:at] = bytes(size)
    for name_and_item in made.entries:
        offsets = name_and_item[1]["data_offsets"]
        if offsets[0] >= at:
            name_and_item[1]["data_offsets"] = [offset + size for offset in offsets]
    return made.dump()


def extreme_axes(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    shape = item["shape"] or [1]
    shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
    item["shape"] = shape
    return made.dump()


def axes_that_overflow(rng: Random, made: Draft) -> bytes:
    """A product that is small only where numbers wrap around, or that hides behind a zero."""
    _, item = _pick(rng, made)
    item["shape"] = rng.choice(
        ([2**32, 2**32], [2**63, 2], [2**33, 2**31, 8], [0, 2**62], [2**62, 2**62, 0], [2**31] * 4, [2] * 64, [1] * 33)
    )
    return made.dump()


def an_empty_axis(rng: Random, made: Draft) -> bytes:
    """A tensor of no numbers, consistent in itself."""
    index, item = _pick(rng, made)
    shape = list(item["shape"]) or [1]
    shape[rng.randrange(len(shape))] = 0
    made.put(index, item["dtype"], shape, b"")
    return made.dump()


def a_huge_rank(rng: Random, made: Draft) -> bytes:
    """Many lanes, consistent in one tensor or in none."""
    index, item = _pick(rng, made)
    shape = list(item["shape"]) or [1]
    shape[rng.choice((0, -1))] = rng.choice((64, 640, 2000))
    size = min(prod(shape) * DTYPES[item["dtype"]].itemsize, 1 << 19)
    made.put(index, item["dtype"], shape, bytes(size))
    return made.dump()


def another_shape_of_that_size(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    shape = item["shape"]
    count = prod(shape)
    splits = [[count // part, part] for part in range(1, min(count, 64) + 1) if count % part == 0]
    item["shape"] = rng.choice(
        (shape[::-1], [count], [*shape, 1], [1, *shape], [*shape, 1, 1], [*shape[:1], 1, *shape[1:]], *splits)
    )
    return made.dump()


def another_dtype(rng: Random, made: Draft) -> bytes:
    """One that is as wide, so that the numbers are others."""
    _, item = _pick(rng, made)
    wide = DTYPES[item["dtype"]].itemsize if item["dtype"] in DTYPES else 4
    item["dtype"] = rng.choice([name for name, dtype in DTYPES.items() if dtype.itemsize == wide])
    return made.dump()


def an_unknown_dtype(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    item["dtype"] = rng.choice(("F13", "f32", "F8_E8M0", "U16", "U32", "U64", "C64", "", "F32 ", "x" * 5000, *WRONG))
    return made.dump()


def a_wrong_type(rng: Random, made: Draft) -> bytes:
    index, item = _pick(rng, made)
    if rng.random() < 0.3:
        made.entries[index] = (made.entries[index][0], rng.choice(WRONG))
    else:
        item[rng.choice((*PLACES, "extra"))] = rng.choice(WRONG)
    return made.dump()


def a_missing_place(rng: Random, made: Draft) -> bytes:
    _, item = _pick(rng, made)
    del item[rng.choice(PLACES)]
    return made.dump()


def a_name_twice(rng: Random, made: Draft) -> bytes:
    index, item = _pick(rng, made)
    made.entries.insert(rng.randrange(len(made.entries)), (made.entries[index][0], dict(item)))
    return made.dump()


def a_key_twice(rng: Random, made: Draft) -> bytes:
    key = rng.choice(PLACES)
    return made.dump(made.header().replace(f'"{key}"'.encode(), f'"{key}":0,"{key}"'.encode(), 1))


def metadata_that_is_none(rng: Random, made: Draft) -> bytes:
    text = json.dumps(rng.choice(("\ud800", {"a": 1}, {"a": None}, {"a": {"b": "c"}}, *WRONG)))
    return made.dump(b'{"__metadata__":' + text.encode() + b"," + Draft(made.entries).header()[1:])


def much_metadata(rng: Random, made: Draft) -> bytes:
    size = rng.choice((100, 2000))
    made.metadata = rng.choice(({str(key): "" for key in range(size)}, {"ss_tag_frequency": "{" * 30 * size}))
    return made.dump()


def deep_json(rng: Random, made: Draft) -> bytes:
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = rng.choice((50, 1000, 20000))
    middle = opening * depth + b"1" + (closing * depth if rng.random() < 0.5 else b"")
    return made.dump(b'{"deep":' + middle + b"," + made.header()[1:])


def wide_json(rng: Random, made: Draft) -> bytes:
    """Many values where one is wanted."""
    many = rng.choice((b"[],", b"1,", b'"",', b"{},", b"null,")) * rng.choice((100, 20000))
    place = rng.choice((b'"wide":[' + many + b"0],", b'"__metadata__":[' + many + b"0],"))
    return made.dump(b"{" + place + Draft(made.entries).header()[1:])


def long_numbers(rng: Random, made: Draft) -> bytes:
    number = rng.choice((b"9" * 4000, b"9" * 5000, b"1e400", b"-1e400", b"NaN", b"Infinity", b"1" + b"0" * 400, b"00"))
    header = made.header()
    at = header.find(b"data_offsets") + len(b'data_offsets": [')
    return made.dump(header[:at] + number + header[at + 1 :])


def other_spaces(rng: Random, made: Draft) -> bytes:
    """Headers may be padded with spaces; with anything else they are none."""
    pad = rng.choice((b" ", b"\n", b"\t", b"\0", b"\xc2\xa0", b"}", b"{}")) * rng.choice((1, 8, 3000))
    return made.dump(rng.choice((made.header() + pad, pad + made.header())))


def another_order(rng: Random, made: Draft) -> bytes:
    rng.shuffle(made.entries)
    return made.dump()


MUTATIONS: Mapping[str, Callable[[Random, Draft], bytes]] = {
    made.__name__.replace("_", " "): made
    for made in (
        overlapping_offsets,
        extreme_offsets,
        reversed_offsets,
        a_gap,
        extreme_axes,
        axes_that_overflow,
        an_empty_axis,
        a_huge_rank,
        another_shape_of_that_size,
        another_dtype,
        an_unknown_dtype,
        a_wrong_type,
        a_missing_place,
        a_name_twice,
        a_key_twice,
        metadata_that_is_none,
        much_metadata,
        deep_json,
        wide_json,
        long_numbers,
        other_spaces,
        another_order,
    )
}
