"""A graph in parts, as `export.parts` cut it: what stays the same from step to step is computed once and held.

What a part made belongs to what it took. The factors of adapters are too large to compare: the same array is the same
factor. All else is known by its numbers, and what earlier parts made by the run that made it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.feeds import check_names, check_rows
from lora_edge.graph import Graph, GraphInput
from lora_edge.ports import has_lanes
from lora_edge.slots import SCALES


class Parts:
    """All parts as one graph (a `Graph`).

    Every part but the last holds what it computed: weights with the update of their adapters, one for each row of
    `lora.scales`, the prompt's keys and values. It runs again when something that it takes is another than before. What
    it made for adapters that were there before may still be held: then they are back at once.

    Args:
        parts: in the order in which they run; the outputs of all but the last are inputs of later ones.
        room: bytes that parts may hold together. What belongs to the last feeds is held in any case, and what belongs
            to other adapters for as long as there is room, the least recently used written over first.
        brief: hold nothing from run to run, where memory counts and inputs differ every time.
    """

    place: Any = None

    def __init__(self, parts: Sequence[Graph], *, room: int = 0, brief: bool = False) -> None:
        *holding, self._step = parts
        made = {name for graph in holding for name in graph.outputs}
        plain = {name: port for graph in reversed(parts) for name, port in graph.inputs.items()}
        self.inputs: Mapping[str, GraphInput] = {name: port for name, port in plain.items() if name not in made}
        self.optional: Mapping[str, GraphInput] = {n: port for graph in parts for n, port in graph.optional.items()}
        self.outputs = self._step.outputs
        self._of_step = _taken(self._step)
        self._holding: list[_Holding] = []
        for place, graph in enumerate(holding):
            self._holding.append(_Holding(graph, holding[:place], self._holding, room))
        self._brief = brief

    @property
    def nbytes(self) -> int:
        """Bytes that are held, with the factors that are kept from being put away."""
        return sum(part.nbytes for part in self._holding)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`. Adapter inputs are known by identity, as long as every run is fed the same arrays."""
        check_names("graph", feeds, self.inputs, self.optional)
        check_rows([feeds[name] for name in self.inputs], feeds.get(SCALES))
        known, before = dict(feeds), list[_Held]()
        for part in self._holding:
            before.append(part.results(known, before))
            known.update(before[-1].made)
        made = self._step.run({name: known[name] for name in known if name in self._of_step})
        if self._brief:
            for part in self._holding:
                part.forget()
        return made


def _taken(graph: Graph) -> set[str]:
    return {*graph.inputs, *graph.optional}


@dataclass
class _Held:
    """What a part computed.

    Attributes:
        place: see `Graph.place`.
        seen: what it was made of.
        after: the stamps of what it was made of that is held too.
        made: the results.
        stamp: the number of the run that made it; every run has another.
    """

    place: Any = None
    seen: Mapping[str, Array] = field(default_factory=dict)
    after: tuple[int, ...] = ()
    made: Mapping[str, Array] = field(default_factory=dict)
    stamp: int = 0

    @property
    def nbytes(self) -> int:
        """With the factors that it keeps from being put away, as it knows them by identity."""
        factors = sum(array.nbytes for name, array in self.seen.items() if has_lanes(name))
        return factors + sum(array.nbytes for array in self.made.values())


class _Holding:
    """One part and what it holds, by the factors that it was made with, its own or those of what it takes.

    Args:
        graph: the part.
        before: those that run before it.
        everybody: all that hold, this one among them; the list grows while they are made.
        room: bytes that everybody may hold together.
    """

    def __init__(self, graph: Graph, before: Sequence[Graph], everybody: Sequence["_Holding"], room: int) -> None:
        self._graph, self._everybody, self._room = graph, everybody, room
        self._taken = _taken(graph)
        self._after = [place for place, other in enumerate(before) if not self._taken.isdisjoint(other.outputs)]
        held_before = {name for other in before for name in other.outputs}
        self._given = self._taken - held_before
        self._plain = graph.inputs.keys() - held_before
        self._held: OrderedDict[tuple[int, ...], _Held] = OrderedDict()  # the last one is in use
        self._stamps = count(1)

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())

    def results(self, known: Mapping[str, Array], before: Sequence[_Held]) -> _Held:
        """What was made of these, or is now.

        Args:
            known: what the graph as a whole is fed, and what earlier parts made.
            before: the latter, as they hold it.
        """
        given = {name: array for name, array in known.items() if name in self._given}
        taken = [before[place] for place in self._after]
        after = tuple(held.stamp for held in taken)
        last = next(reversed(self._held.values()), None)
        if last is not None and _alike(last, given, after):
            return last
        key = *(id(array) for name, array in given.items() if has_lanes(name)), *map(id, taken)
        held = self._held.get(key)
        if held is not None and _alike(held, given, after):
            self._held.move_to_end(key)
            return held
        held = self._place_for(key)  # a run that fails half way has written over some of it
        self._graph.place = held.place
        held.made = self._graph.run({name: array for name, array in known.items() if name in self._taken})
        held.place, held.after, held.stamp = self._graph.place, after, next(self._stamps)
        held.seen = {name: array.copy() if name in self._plain else array for name, array in given.items()}
        self._held[key] = held
        while len(self._held) > 1 and not self._has_room(0):
            self._held.popitem(last=False)
        return held

    def _place_for(self, key: tuple[int, ...]) -> _Held:
        """Where the same factors were, new memory, or what was used least recently where there is room for no more."""
        if key in self._held or not self._held:
            return self._held.pop(key, _Held())
        like = next(reversed(self._held.values())).nbytes
        return _Held() if self._has_room(like) else self._held.popitem(last=False)[1]

    def _has_room(self, more: int) -> bool:
        return sum(one.nbytes for one in self._everybody) + more <= self._room

    def forget(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        self._graph.place = None


def _alike(held: _Held, given: Mapping[str, Array], after: tuple[int, ...]) -> bool:
    """Whether what is held was made of these.

    Plain inputs may have been refilled in place; a slider that rests gives its numbers in a new array every time.
    """
    seen = held.seen
    if held.after != after or seen.keys() != given.keys():
        return False
    return all(
        seen[name] is array or (not has_lanes(name) and np.array_equal(seen[name], array))
        for name, array in given.items()
    )
