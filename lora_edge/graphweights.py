"""A component's own weights and biases, read out of the file that its graph keeps them in.

The manifest of a bundle says where they lie:

    "weights": {
      "file": "unet/model.onnx.data",
      "tensors": {"<slot>": {"offset": bytes, "dtype": "F32", "shape": […], "transposed": true}, …},
      "biases": {"<slot>": {"offset": bytes, "dtype": "F32", "shape": [out]}, …}
    }

A weight lies as torch has it, or transposed, [in, out], as graphs multiply it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import BundleDamaged
from lora_edge.slots import Slot, SlotTable

DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
SQUARE = 64  # side of what is transposed at once


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies; shape: as it lies."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    transposed: bool

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class GraphWeights:
    """The weights of one component; one layer at a time is read, and nothing is kept.

    Attributes:
        file: the data file of the graph.
        weights, biases: slot name -> place in the file.
    """

    file: Path
    weights: Mapping[str, _Place]
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

        def place(leaf: str, slot: Slot, shape: tuple[int, ...]) -> _Place:
            item = entry[leaf][slot.name]
            transposed = bool(item.get("transposed", False))
            wanted = tuple(reversed(shape)) if transposed else shape
            found = _Place(int(item["offset"]), DTYPES[item["dtype"]], wanted, transposed)
            if item["shape"] != list(wanted) or found.offset < 0 or found.end > size:
                raise BundleDamaged(
                    f"{slot.name} should have {leaf} {list(wanted)} within the {size} bytes of {file}, where its "
                    f"manifest says {item['shape']} at {found.offset}; export it again"
                )
            return found

        weights = {slot.name: place("tensors", slot, slot.weight_shape) for slot in table}
        biases = {slot.name: place("biases", slot, (slot.out_features,)) for slot in table if slot.has_bias}
        return cls(file, weights, biases)

    def weight(self, slot: str) -> FloatArray:
        """A layer's weight, float32 in torch's layout: [out, in] or [out, in, kh, kw].

        Raises:
            BundleDamaged: the file was cut since the bundle was opened.
        """
        return self._read(self.weights[slot])

    def bias(self, slot: str) -> FloatArray | None:
        """A layer's bias [out] float32, None where it has none; raises as `weight`."""
        return self._read(self.biases[slot]) if slot in self.biases else None

    def _read(self, place: _Place) -> FloatArray:
        count = math.prod(place.shape)
        try:
            held = np.fromfile(self.file, place.dtype, count, offset=place.offset)
        except OSError as reason:
            raise BundleDamaged(f"{self.file} cannot be read: {reason.strerror or reason}") from reason
        if held.size != count:
            raise BundleDamaged(f"{self.file} was cut while it was in use; copy the bundle again")
        shaped = held.reshape(place.shape)
        return _turned(shaped) if place.transposed else np.ascontiguousarray(shaped, dtype=np.float32)


def _turned(matrix: Array) -> FloatArray:
    """The transpose, float32, square by square: line by line the copy would wait for memory most of the time."""
    made = np.empty(matrix.shape[::-1], np.float32)
    for row in range(0, len(matrix), SQUARE):
        for column in range(0, matrix.shape[1], SQUARE):
            part = matrix[row : row + SQUARE, column : column + SQUARE]
            made[column : column + SQUARE, row : row + SQUARE] = part.T
    return made
