"""Truncated singular value decompositions: the best approximation of a change with few lanes (Eckart, Young 1936).

A change is dW^T = down @ up, [patch, out]. The energy of some lanes is the sum of their squared singular values; what
is left out is the squared Frobenius error. Everything is computed in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import RequestError

_ROUNDING = 1e-12  # relative, of a sum of float64 squares


@dataclass(frozen=True)
class Budget:
    """How many lanes a layer may have.

    Attributes:
        rank: the most lanes of a Linear layer or a 1x1 Conv, None for as many as the energy needs.
        conv_rank: the same of a Conv with a larger kernel; None for `rank`.
        energy: take the fewest lanes that keep this share of the layer's energy, in (0, 1]; None for all lanes that
            are allowed.

    Raises:
        RequestError: a rank below 1, an energy outside (0, 1], or neither given.
    """

    rank: int | None = None
    conv_rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        for word, rank in (("rank", self.rank), ("conv rank", self.conv_rank)):
            if rank is not None and rank < 1:
                raise RequestError(f"a {word} of {rank} leaves nothing; give 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RequestError(f"an energy of {self.energy} is no share; give more than 0 and at most 1")
        if self.rank is None and self.energy is None:
            raise RequestError("say how much to keep: a rank, an energy, or both")

    def lanes(self, squares: Array, total: float, kernel: Sequence[int]) -> int:
        """How many of the squared singular values, sorted downwards, a layer keeps.

        Args:
            squares: [values], descending.
            total: energy of the whole change.
            kernel: (kh, kw) of a Conv, empty for a Linear.
        """
        wide = math.prod(kernel) > 1
        most = self.conv_rank if wide and self.conv_rank is not None else self.rank
        count = len(squares) if most is None else min(most, len(squares))
        if self.energy is None:
            return count
        enough = int(np.searchsorted(np.cumsum(squares), self.energy * total * (1 - _ROUNDING))) + 1
        return min(count, enough)


@dataclass(frozen=True)
class Truncated:
    """The best approximation with so many lanes.

    Attributes:
        down: [patch, lanes] float32.
        up: [lanes, out] float32; both factors carry the root of each singular value, which suits half precision.
        kept: energy of the lanes.
        total: energy of the whole change.
    """

    down: FloatArray
    up: FloatArray
    kept: float
    total: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[1])


def truncate_whole(change: Array, kernel: Sequence[int], budget: Budget) -> Truncated:
    """The lanes of a whole change, by the eigenvectors of its smaller Gram matrix.

    The change is projected on the eigenvectors, so an inexact one costs energy and never truth. Those of a float64
    Gram matrix are exact but for lanes below 1e-8 of the largest one.

    Args:
        change: [out, patch].
        kernel: (kh, kw) of a Conv, empty for a Linear.
        budget: how many lanes.
    """
    matrix = change.astype(np.float64)
    total = float(np.square(matrix).sum())
    turned = matrix.shape[0] > matrix.shape[1]
    short = matrix.T if turned else matrix
    squares, vectors = np.linalg.eigh(short @ short.T)
    squares = np.maximum(squares[::-1], 0)
    basis = vectors[:, ::-1][:, : budget.lanes(squares, total, kernel)]
    image = basis.T @ short
    kept = np.square(image).sum(axis=1)
    roots = kept**0.25
    left, right = basis * roots, image / np.where(roots > 0, roots, 1)[:, None]
    down, up = (left, right) if turned else (right.T, left.T)
    return Truncated(single(down), single(up), float(kept.sum()), total)


def truncate_lanes(down: Array, up: Array, kernel: Sequence[int], budget: Budget) -> Truncated:
    """The best lanes of a low-rank change, through QR of its factors: the whole change is never formed.

    Args:
        down: [patch, lanes].
        up: [lanes, out].
        kernel: (kh, kw) of a Conv, empty for a Linear.
        budget: how many lanes.
    """
    basis_down, rest_down = np.linalg.qr(down.astype(np.float64))
    basis_up, rest_up = np.linalg.qr(up.T.astype(np.float64))
    left, values, right = np.linalg.svd(rest_down @ rest_up.T)
    squares = values**2
    total = float(squares.sum())
    lanes = budget.lanes(squares, total, kernel)
    roots = np.sqrt(values[:lanes])
    return Truncated(
        single((basis_down @ left[:, :lanes]) * roots),
        single((right[:lanes] * roots[:, None]) @ basis_up.T),
        float(squares[:lanes].sum()),
        total,
    )


def energy_of(down: Array, up: Array) -> float:
    """The sum of squares of down [patch, lanes] @ up [lanes, out], which is not formed."""
    down, up = down.astype(np.float64), up.astype(np.float64)
    return float(((down.T @ down) * (up @ up.T)).sum())


def single(array: Array) -> FloatArray:
    """float32; what is too large becomes infinite, which is refused when it is written."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)
