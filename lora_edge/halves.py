"""A graph in parts, as `export.halves` cut it: what stays the same from step to step is computed once and held."""

from collections.abc import Iterable, Mapping
from functools import partial, reduce

import numpy as np

from lora_edge.arrays import Array
from lora_edge.feeds import check_names, check_rows
from lora_edge.graph import Graph, GraphInput
from lora_edge.ports import has_lanes
from lora_edge.slots import SCALES


def joined(parts: Iterable[Graph], *, brief: bool = False) -> Graph:
    """The parts as one graph: all but the last are the once half of what follows; see `Halves`."""
    return reduce(partial(Halves, brief=brief), parts)


class Halves:
    """Both halves, as one graph (a `Graph`).

    What is held belongs to the last feeds: weights with the update of their adapters, one for each row of
    `lora.scales`, and the prompt's keys and values. The next run with another adapter, multiplier or prompt makes it
    anew, but for what the once half, which may be in halves too, holds of its own.

    Args:
        once: computes what is held; its outputs are inputs of the other half.
        step: the rest.
        brief: hold nothing from run to run, where memory counts and inputs differ every time.
    """

    def __init__(self, once: Graph, step: Graph, *, brief: bool = False) -> None:
        self._once, self._step, self._brief = once, step, brief
        plain = {**step.inputs, **once.inputs}
        self.inputs: Mapping[str, GraphInput] = {n: port for n, port in plain.items() if n not in once.outputs}
        self.optional: Mapping[str, GraphInput] = {**once.optional, **step.optional}
        self.outputs = step.outputs
        self._of_once = {**once.inputs, **once.optional}.keys()
        self._of_step = {**step.inputs, **step.optional}.keys()
        self._seen: dict[str, Array] | None = None
        self._held: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`. Adapter inputs are known by identity, as long as every run is fed the same arrays."""
        check_names("graph", feeds, self.inputs, self.optional)
        check_rows([feeds[name] for name in self.inputs], feeds.get(SCALES))
        given = {name: array for name, array in feeds.items() if name in self._of_once}
        if not self._has_seen(given):
            self._seen = None  # a run that fails half way has written over some of what is held
            self._held = self._once.run(given)
            self._seen = {name: array.copy() if name in self.inputs else array for name, array in given.items()}
        made = self._step.run({**{name: feeds[name] for name in feeds if name in self._of_step}, **self._held})
        if self._brief:
            self._seen, self._held = None, {}
        return made

    def _has_seen(self, given: Mapping[str, Array]) -> bool:
        """Whether what is held was made of these.

        Plain inputs may have been refilled in place; a slider that rests gives its numbers in a new array every time.
        """
        seen = self._seen
        if seen is None or seen.keys() != given.keys():
            return False
        return all(
            seen[name] is array or (not has_lanes(name) and np.array_equal(seen[name], array))
            for name, array in given.items()
        )
