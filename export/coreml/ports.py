"""Inputs and outputs of a package as the Core ML manifest writes them, and what the lanes of a slot are called."""

from dataclasses import dataclass
from typing import Any, Literal

from lora_edge.slots import Slot

Dtype = Literal["fp16", "fp32", "int32"]

SCALE = "lora_scale"  # [R]: the multiplier of the adapter that holds the lane


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        name: in the package.
        shape: fixed.
        dtype: of its elements.
        default: of all elements where an input may be left out; None where it must be given, and for outputs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    default: float | None = None

    def to_json(self) -> dict[str, Any]:
        """An input's entry."""
        told: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        optional = self.default is not None
        return {**told, "optional": optional, **({"default": self.default} if optional else {})}


@dataclass(frozen=True)
class Pair:
    """The two inputs of a slot.

    A Linear takes down [in, R] and up [R, out]; what runs as a convolution takes [R, in, kh, kw] and [out, R, 1, 1].
    """

    slot: Slot
    down: Port
    up: Port

    @classmethod
    def of(cls, slot: Slot, rank: int, dtype: Dtype, convolved: bool) -> "Pair":
        """Its inputs for a bucket of that many lanes."""
        name = slot.name.replace(".", "_")
        kernel = slot.kernel or (1, 1)
        down = (rank, slot.in_features, *kernel) if convolved else (slot.in_features, rank)
        up = (slot.out_features, rank, 1, 1) if convolved else (rank, slot.out_features)
        return cls(slot, Port(f"{name}_down", down, dtype, 0.0), Port(f"{name}_up", up, dtype, 0.0))

    def to_json(self) -> dict[str, Any]:
        """The slot's entry."""
        return {
            "down": self.down.name,
            "up": self.up.name,
            "down_shape": list(self.down.shape),
            "up_shape": list(self.up.shape),
        }
