"""Packs as `write_pack` writes them, read in the time that it takes to copy their bytes.

A pack of lanes alone is told whole by its own description: names, shapes and places of its tensors follow from it. So
its header is written again out of the description, and where that gives the file's own bytes nothing is left to check
of them. The data is read, converted and checked (`lora_edge.packdata`) while the header is being looked at. Everything
else about a pack is for `lora_edge.pack` to read, and to refuse.
"""

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from lora_edge.arrays import Array, FloatArray
from lora_edge.forms import ComponentForms, Form
from lora_edge.packdata import HALVES, SINGLES, THREADS, fill, mapped, room
from lora_edge.packhead import KEY, Head
from lora_edge.ports import lanes_of
from lora_edge.slots import SlotTable
from lora_edge.tensorheader import DTYPES, Wrong, leading_strings
from lora_edge.tools.write import Tensor, header

STORED: Mapping[str, str] = {"fp16": "F16", "fp32": "F32"}
MAX_HEADER = 8 << 20  # bytes; a pack of SDXL with every layer has 1 MB

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Quick:
    """A pack that holds lanes alone, its header known to be in order.

    Attributes:
        head: its description.
        metadata: the header's strings.
        names: of its tensors, in the order of the file.
        parts: component -> what it changes there.
    """

    head: Head
    metadata: Mapping[str, str]
    names: tuple[str, ...]
    parts: Mapping[str, ComponentForms]


def read_quick(
    path: Path, tables: Mapping[str, SlotTable], marks: Mapping[str, str], max_bytes: float, in_place: bool = False
) -> Quick | None:
    """A pack of lanes alone; None for whatever is not quite as `write_pack` writes it, is too large, or not finite.

    Args:
        path: of the file.
        tables: of every component of the bundle that takes adapters.
        marks: what the names of a component's tensors begin with, see `lora_edge.pack.prefixes`.
        max_bytes: the most that it may take in memory.
        in_place: leave float32 where it lies in the file and take the numbers on trust: none is looked at.
    """
    try:
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(THREADS) as threads:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size - 8 - length
            if not 2 <= length <= MAX_HEADER or size <= 0:
                return None
            text = file.read(length)
            if KEY.encode() not in text:
                return None
            stored = HALVES if b'"dtype":"F16"' in text else SINGLES
            count = size // stored.dtype.itemsize
            if 4 * count > max_bytes:
                return None
            if in_place and stored is SINGLES:
                data, checks = mapped(file, 8 + length, count), iter([True])
            else:
                data = room(count)
                checks = fill(data, file, 8 + length, stored, threads)
            made = _described(text, size, tables, marks)
            if made is None or (made[0].dtype == "fp16") != (stored is HALVES):
                return None
            head, metadata, shapes = made
            held = _views(shapes, data)
            if not all(checks):
                return None
            return Quick(head, metadata, tuple(shapes), _parts(head, tables, held))  # may copy, so not before
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, Wrong):
        return None  # lora_edge.pack says what is wrong


def _described(
    text: bytes, size: int, tables: Mapping[str, SlotTable], marks: Mapping[str, str]
) -> tuple[Head, dict[str, str], Shapes] | None:
    """Description, strings and tensors in file order, if the header is what they make it."""
    metadata = leading_strings(text)
    head = Head.parse(json.loads(metadata[KEY]))
    shapes: Shapes = {}
    for component, part in head.parts.items():
        table = tables[component]
        if part.prefix != marks[component] or list(part.runs) != [
            slot.name for slot in table if slot.name in part.runs
        ]:
            return None
        for name, runs in part.runs.items():
            slot, rank = table.by_name[name], sum(lanes for lanes, _ in runs)
            shapes[part.prefix + slot.port("down")] = slot.patch, rank
            shapes[part.prefix + slot.port("up")] = rank, slot.out_features
    dtype = STORED[head.dtype]
    shapes = dict(sorted(shapes.items()))
    if DTYPES[dtype].itemsize * sum(map(math.prod, shapes.values())) != size:
        return None
    tensors = {name: Tensor(dtype, shape, _never) for name, shape in shapes.items()}
    return (head, metadata, shapes) if header(list(tensors), tensors, metadata)[8:] == text else None


def _never() -> Array:
    raise AssertionError("only the header is made")


def _views(shapes: Shapes, data: FloatArray) -> dict[str, FloatArray]:
    ends = accumulate(map(math.prod, shapes.values()))
    return {
        name: data[end - math.prod(shape) : end].reshape(shape)
        for end, (name, shape) in zip(ends, shapes.items(), strict=True)
    }


def _parts(head: Head, tables: Mapping[str, SlotTable], held: Mapping[str, FloatArray]) -> dict[str, ComponentForms]:
    made = {}
    for component, part in head.parts.items():
        forms: dict[str, tuple[Form, ...]] = {}
        for name, runs in part.runs.items():
            slot = tables[component].by_name[name]
            down, up = (held[part.prefix + slot.port(leaf)] for leaf in ("down", "up"))
            forms[name] = tuple(lanes_of(down, up, runs))
        made[component] = ComponentForms(forms)
    return made
