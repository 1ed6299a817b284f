"""What an example of a kind is: tensors for one layer, and what they make of its weight, in float64."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]  # leaf as kohya and LyCORIS spell it -> float64 or int64
Make = Callable[[Array, np.random.Generator], dict[str, Array]]
Formula = Callable[[Array, Tensors], Array]

CHANGE = 0.4  # of the weight's own norm: what a generated adapter changes


def same(parameter: Array, tensors: Tensors) -> Array:
    return parameter


@dataclass(frozen=True, eq=False)  # hashed by identity
class Example:
    """One way in which files change a layer.

    Attributes:
        name: of the kind and its variant.
        make: (weight, random) -> the tensors of one layer.
        weight: (W, tensors) -> W'_1, the weight at multiplier 1, by the formula.
        bias: (b, tensors) -> b'_1; a layer without bias has zeros.
        norms: the layers are norms, which have [channels] for a weight.
        metadata: of the file.
    """

    name: str
    make: Make
    weight: Formula = same
    bias: Formula = same
    norms: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def additive(name: str, make: Make, delta: Formula, **others: Any) -> Example:
    """W' = W + delta."""
    return Example(name, make, lambda weight, tensors: weight + delta(weight, tensors), **others)


def scaled(weight: Array, tensors: dict[str, Array], leaf: str, delta: Formula) -> dict[str, Array]:
    """The tensors with one of them, in which delta is linear, scaled so that delta is `CHANGE` of the weight."""
    norm = np.linalg.norm(delta(weight, tensors))
    return {**tensors, leaf: np.asarray(tensors[leaf] * CHANGE * np.linalg.norm(weight) / norm)}


def scale(tensors: Tensors, rank: int) -> float:
    """alpha / rank, 1 without alpha."""
    return float(tensors["alpha"].reshape(())) / rank if "alpha" in tensors else 1.0


def an_alpha(rng: np.random.Generator, rank: int) -> Array:
    """Files have it with and without an axis."""
    value = rng.choice([0.3, 1.0, rank / 2, rank, 2.0 * rank])
    return np.full((1,) if rng.random() < 0.3 else (), value)


def tucker(first: Array, middle: Array, last: Array) -> Array:
    """[out, p], [p, q, kh, kw], [q, in] -> [out, in, kh, kw]."""
    return np.asarray(np.einsum("op,pqhw,qi->oihw", first, middle, last))


def is_spatial(weight: Array) -> bool:
    """A Conv with more than one tap, to which the kernel of a Tucker form belongs."""
    return weight.ndim == 4 and weight.shape[2:] != (1, 1)


def column(weight: Array, values: Array) -> Array:
    """[out] -> [out, 1(, 1, 1)]."""
    return values.reshape(-1, *(1,) * (weight.ndim - 1))
