"""A component's own weights and biases, read out of the file that its graph keeps them in.

The manifest of a bundle says where they lie:

    "weights": {
      "file": "unet/model.onnx.data",
      "tensors": {"<slot>": {"offset": bytes, "dtype": "F32", "shape": […], "transposed": true}, …},
      "biases": {"<slot>": {"offset": bytes, "dtype": "F32", "shape": [out]}, …}
    }

A weight lies as torch has it, or transposed, [in, out], as graphs multiply it; or in codes (`lora_edge.blockwise`):

    "<slot>": {"offset": bytes, "dtype": "U8", "shape": [out, bytes of a row], "bits": 4, "channels_last": false,
               "strided": false,
               "scales": {"offset": bytes, "dtype": "F32", "shape": [out, blocks]},
               "zeros": {"offset": bytes, "dtype": "U8", "shape": [out, bytes of a row's zeros]}}

All three may lie transposed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.blockwise import BITS, Blockwise, row_bytes
from lora_edge.errors import BundleDamaged
from lora_edge.slots import Slot, SlotTable

DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
FLOATS = ("F32", "F16", "BF16")
_LYING: Mapping[str, np.dtype[Any]] = {**DTYPES, "BF16": np.dtype("<u2"), "U8": np.dtype("u1")}
SQUARE = 64  # side of what is transposed at once


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies; shape: as it lies; dtype: a key of _LYING."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * _LYING[self.dtype].itemsize


@dataclass(frozen=True)
class _Packed:
    """Where the parts of a weight in codes lie; shape: of the weight in torch's layout."""

    bits: int
    shape: tuple[int, ...]
    channels_last: bool
    strided: bool
    codes: _Place
    scales: _Place
    zeros: _Place


@dataclass(frozen=True)
class GraphWeights:
    """The weights of one component; one layer at a time is read, and nothing is kept.

    Attributes:
        file: the data file of the graph.
        weights, biases: slot name -> place in the file.
    """

    file: Path
    weights: Mapping[str, _Place | _Packed]
    biases: Mapping[str, _Place]

    @classmethod
    def parse(cls, entry: Mapping[str, Any], file: Path, table: SlotTable) -> "GraphWeights":
        """Check an entry of a manifest against the slots and the file; nothing is read yet.

        Raises:
            BundleDamaged: no such file, or a slot's tensor is of another shape or not inside it.
            KeyError, TypeError, ValueError: the entry lacks a slot, or is misspelt.
        """
        if not file.is_file():
            raise BundleDamaged(f"{file}, where the weights should lie, is missing; copy the bundle again")
        size = file.stat().st_size

        def place(
            leaf: str, slot: Slot, item: Mapping[str, Any], shape: tuple[int, ...], dtypes: Sequence[str] = FLOATS
        ) -> _Place:
            transposed = bool(item.get("transposed", False))
            wanted = tuple(reversed(shape)) if transposed else shape
            if item["dtype"] not in dtypes:
                raise KeyError(item["dtype"])
            found = _Place(int(item["offset"]), str(item["dtype"]), wanted, transposed)
            if item["shape"] != list(wanted) or found.offset < 0 or found.end > size:
                raise BundleDamaged(
                    f"{slot.name} should have {leaf} {list(wanted)} within the {size} bytes of {file}, where its "
                    f"manifest says {item['shape']} at {found.offset}; export it again"
                )
            return found

        def weight(slot: Slot) -> _Place | _Packed:
            item = entry["tensors"][slot.name]
            if "bits" not in item:
                return place("tensors", slot, item, slot.weight_shape)
            blocks = int(item["scales"]["shape"][0 if item["scales"].get("transposed") else 1])
            bits = int(item["bits"])
            if bits not in BITS or blocks < 1 or slot.patch % blocks:
                raise BundleDamaged(f"{slot.name} cannot have {blocks} blocks of {bits} bits a row; export it again")
            parts = {"codes": (item, slot.patch), "zeros": (item["zeros"], blocks)}
            codes, zeros = (
                place(leaf, slot, part, (slot.out_features, row_bytes(count, bits)), ("U8",))
                for leaf, (part, count) in parts.items()
            )
            scales = place("scales", slot, item["scales"], (slot.out_features, blocks), ("F32",))
            return _Packed(
                bits, slot.weight_shape, bool(item["channels_last"]), bool(item["strided"]), codes, scales, zeros
            )

        weights = {slot.name: weight(slot) for slot in table}
        biases = {
            slot.name: place("biases", slot, entry["biases"][slot.name], (slot.out_features,))
            for slot in table
            if slot.has_bias
        }
        return cls(file, weights, biases)

    def weight(self, slot: str) -> FloatArray:
        """A layer's weight, float32 in torch's layout: [out, in] or [out, in, kh, kw].

        Raises:
            BundleDamaged: the file was cut since the bundle was opened.
        """
        place = self.weights[slot]
        if isinstance(place, _Place):
            return self._read(place)
        parts = [(part, self._lying(part)) for part in (place.codes, place.scales, place.zeros)]
        codes, scales, zeros = (held.T if part.transposed else held for part, held in parts)
        return Blockwise(
            place.bits, place.shape, place.channels_last, place.strided, codes, scales, zeros
        ).dequantized()

    def bias(self, slot: str) -> FloatArray | None:
        """A layer's bias [out] float32, None where it has none; raises as `weight`."""
        return self._read(self.biases[slot]) if slot in self.biases else None

    def _read(self, place: _Place) -> FloatArray:
        shaped = self._lying(place)
        return _turned(shaped) if place.transposed else np.ascontiguousarray(shaped, dtype=np.float32)

    def _lying(self, place: _Place) -> Array:
        count, dtype = math.prod(place.shape), _LYING[place.dtype]
        try:
            held = np.fromfile(self.file, dtype, count, offset=place.offset)
        except OSError as reason:
            raise BundleDamaged(f"{self.file} cannot be read: {reason.strerror or reason}") from reason
        if held.size != count:
            raise BundleDamaged(f"{self.file} was cut while it was in use; copy the bundle again")
        return (_widened(held) if place.dtype == "BF16" else held).reshape(place.shape)


def _widened(held: Array) -> FloatArray:
    """bfloat16, which numpy lacks: the upper half of a float32."""
    return (held.astype(np.uint32) << 16).view(np.float32)


def _turned(matrix: Array) -> FloatArray:
    """The transpose, float32, square by square: line by line the copy would wait for memory most of the time."""
    made = np.empty(matrix.shape[::-1], np.float32)
    for row in range(0, len(matrix), SQUARE):
        for column in range(0, matrix.shape[1], SQUARE):
            part = matrix[row : row + SQUARE, column : column + SQUARE]
            made[column : column + SQUARE, row : row + SQUARE] = part.T
    return made
