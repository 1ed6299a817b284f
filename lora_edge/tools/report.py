"""What a tool tells about the adapter that it made."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Over = Callable[[Sequence[Any]], Iterable[Any]]
"""Goes through a sequence; the command line passes a progress bar."""


@dataclass(frozen=True)
class Layer:
    """One layer of an adapter that was made.

    Attributes:
        name: the layer's path, or what the file calls it.
        rank: its lanes; None where the whole difference is written.
        kept: energy (sum of squared singular values) of the lanes.
        total: energy of the change that they stand for.
    """

    name: str
    rank: int | None
    kept: float
    total: float

    @property
    def share(self) -> float:
        """kept / total; 1 for a change that is nothing."""
        return self.kept / self.total if self.total else 1.0


@dataclass(frozen=True)
class Made:
    """An adapter that was made.

    Attributes:
        path: the file.
        layers: in the order in which they were worked on.
        others: how many biases and norms it changes besides.
        warnings: sentences about what the file does not carry.
    """

    path: Path
    layers: tuple[Layer, ...]
    others: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the energy of all layers together that was kept."""
        total = sum(layer.total for layer in self.layers)
        return sum(layer.kept for layer in self.layers) / total if total else 1.0

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, sorted."""
        return tuple(sorted({layer.rank for layer in self.layers if layer.rank is not None}))

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "energy": self.share,
            "ranks": list(self.ranks),
            "layers": [
                {
                    "name": layer.name,
                    "rank": layer.rank,
                    "kept": layer.kept,
                    "total": layer.total,
                    "energy": layer.share,
                }
                for layer in self.layers
            ],
            "biases_and_norms": self.others,
            "warnings": list(self.warnings),
        }
