"""The adapter inputs that change nothing, and graphs that do not know them by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.graph import Graph, GraphInput
from lora_edge.slots import RANKS, SCALES, TOKENS, Slot, SlotTable


def neutral(slot: Slot) -> dict[str, Array]:
    """Leaf -> the value that leaves the layer as it is; factors have rank 0."""
    return {
        "down": np.zeros((slot.patch, 0), np.float32),
        "up": np.zeros((0, slot.out_features), np.float32),
        "gain_in": np.ones(1, np.float32),
        "gain_out": np.ones(1, np.float32),
        "bias": np.zeros(slot.out_features, np.float32),
    }


def defaults(table: SlotTable, norms: Mapping[str, Array], shapes: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
    """The adapter inputs among a graph's inputs, by name, with the values that change nothing.

    Args:
        table: the component's slots.
        norms: `<norm>.weight` and `<norm>.bias` -> the base's values [channels] float32.
        shapes: input of the graph -> its axes.
    """
    known: dict[str, Array] = {SCALES: np.zeros((1, 0), np.float32), RANKS: np.zeros(len(table), np.int64), **norms}
    for slot in table:
        known |= {slot.port(leaf): value for leaf, value in neutral(slot).items()}
    if TOKENS in shapes:
        known[TOKENS] = np.zeros((0, int(shapes[TOKENS][1])), np.float32)
    return {name: known[name] for name in shapes if name in known}


class Filled:
    """A graph whose adapter inputs are plain inputs, with their defaults (a `Graph`).

    Args:
        graph: all of whose inputs must be given.
        table: the component's slots.
        norms: as `defaults` takes them.
    """

    place: Any = None

    def __init__(self, graph: Graph, table: SlotTable, norms: Mapping[str, Array]) -> None:
        self._graph = graph
        self._defaults = defaults(table, norms, {name: port.shape for name, port in graph.inputs.items()})
        ports, held = graph.inputs, self._defaults
        self.inputs: Mapping[str, GraphInput] = {name: port for name, port in ports.items() if name not in held}
        self.optional: Mapping[str, GraphInput] = {name: ports[name] for name in held}
        self.outputs = graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._graph.run({**self._defaults, **feeds})
