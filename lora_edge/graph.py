"""What every backend offers: a compiled component that runs on named numpy arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_edge.arrays import Array
from lora_edge.slots import SlotTable


@dataclass(frozen=True)
class GraphInput:
    """An input; axes that are words are free."""

    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


class Graph(Protocol):
    """A component, loaded once; nothing of it changes between two runs.

    Attributes:
        place: where the next run writes what a part holds for another (`slots.HELD`): None for memory of its own, or
            what stood here after an earlier run, whose results are then written over. Graphs that hold nothing leave
            it alone.
    """

    place: Any

    @property
    def inputs(self) -> Mapping[str, GraphInput]:
        """Inputs that must be given."""

    @property
    def optional(self) -> Mapping[str, GraphInput]:
        """Inputs of adapters, which have defaults."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: every required input, and any of the adapter inputs.

        Returns:
            Every output by name. They are the caller's, but for what a part holds for another (`slots.HELD`), see
            `place`.

        Raises:
            GraphFailed: the graph refuses the feeds.
        """


OpenGraph = Callable[[Path], Graph]
"""An ONNX file -> the graph in it."""

OpenProgram = Callable[[Path, Mapping[str, Any], SlotTable], Graph]
"""The ONNX file of a component, what its manifest says of the program beside it, its slots -> that program."""
