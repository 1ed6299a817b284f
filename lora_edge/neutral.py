"""The adapter inputs that change nothing, and graphs that do not know them by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import GraphFailed
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


def check_lanes(table: SlotTable, feeds: Mapping[str, Array]) -> None:
    """Refuse adapter inputs that do not belong together, for graphs that would not say so.

    Args:
        table: the component's slots.
        feeds: all inputs of a graph, defaults too.

    Raises:
        GraphFailed: factors have other ranks than `lora.ranks` says, `lora.scales` other lanes, gains another length.
    """
    if SCALES not in feeds or RANKS not in feeds:
        return
    scales, ranks = feeds[SCALES], feeds[RANKS]
    if len(ranks) != len(table) or ranks.min(initial=0) < 0 or ranks.sum() != scales.shape[1]:
        raise GraphFailed(f"{RANKS} does not cut the {scales.shape[1]} lanes of {SCALES} for {len(table)} slots")
    for slot, rank in zip(table, ranks.tolist(), strict=True):
        down, up = feeds.get(slot.port("down")), feeds.get(slot.port("up"))
        if down is not None and up is not None and not down.shape[1] == len(up) == rank:
            raise GraphFailed(f"{slot.name} has matrices of rank {down.shape[1]} and {len(up)}, {RANKS} says {rank}")
        for leaf, features in (("gain_in", slot.in_features), ("gain_out", slot.out_features)):
            gain = feeds.get(slot.port(leaf))
            if gain is not None and len(gain) not in (1, features):
                raise GraphFailed(f"{slot.port(leaf)} has {len(gain)} numbers; it takes 1 or {features}")


def check_rows(plain: Sequence[Array], scales: Array | None) -> None:
    """Refuse batches that do not agree: one number of rows for all; a list of numbers, and scales, may have one.

    Raises:
        GraphFailed: they do not.
    """
    batches = {len(array) for array in plain if array.ndim > 1}
    lists = {len(array) for array in plain if array.ndim == 1} | ({1} if scales is None else {len(scales)})
    if len(batches) > 1 or 0 in batches or not lists <= {1, *batches}:
        raise GraphFailed(f"inputs have {', '.join(map(str, sorted(batches | lists)))} rows; they must agree")


class Filled:
    """A graph whose adapter inputs are plain inputs, with their defaults (a `Graph`).

    Args:
        graph: all of whose inputs must be given.
        table: the component's slots.
        norms: as `defaults` takes them.
    """

    def __init__(self, graph: Graph, table: SlotTable, norms: Mapping[str, Array]) -> None:
        self._graph = graph
        self._defaults = defaults(table, norms, {name: port.shape for name, port in graph.inputs.items()})

    @property
    def inputs(self) -> Mapping[str, GraphInput]:
        return {name: port for name, port in self._graph.inputs.items() if name not in self._defaults}

    @property
    def optional(self) -> Mapping[str, GraphInput]:
        return {name: self._graph.inputs[name] for name in self._defaults}

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._graph.run({**self._defaults, **feeds})
