"""What operations share: reading small constants, and refusing a result before memory is taken for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.types import Shape

Op = Callable[..., Array | list[Array]]
Family = Mapping[str, Op]


class DeclaredOtherwise(ValueError):
    """The operation makes another shape than the program declares."""


def fits(declared: Sequence[Shape], *made: Sequence[int]) -> None:
    """Called before a result larger than the operands is computed.

    Raises:
        DeclaredOtherwise: the shapes differ.
    """
    if [tuple(shape) for shape in made] != list(declared):
        told = ", ".join(str([int(size) for size in shape]) for shape in made)
        raise DeclaredOtherwise(f"makes {told}, and the program declares {', '.join(str(list(s)) for s in declared)}")


def ints(values: Array | Sequence[int] | None, default: Sequence[int] = ()) -> list[int]:
    """A small constant of integers as a list."""
    return list(default) if values is None else [int(value) for value in np.ravel(values)]


def flag(value: Any) -> bool:
    """A boolean constant."""
    return bool(np.asarray(value).item())


def axes_of(axes: Array | None, rank: int) -> tuple[int, ...]:
    """Axes counted from 0; all of them where none are named."""
    return tuple(_axis(axis, rank) for axis in ints(axes, range(rank)))


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank}")
    return axis % rank
