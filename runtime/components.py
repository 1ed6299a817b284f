"""The components of an open bundle: each graph loaded when it is first used, and never again.

But for one change over: where a bundle has narrower graphs, which are faster, the narrowest is opened, and a wider one
takes its place when an adapter is loaded that needs more.
"""

import logging
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.errors import AdapterMismatch, RequestError
from lora_edge.graph import Graph, GraphInput
from lora_edge.parts import Parts
from lora_edge.runtime.backends import Backend
from lora_edge.scope import ALL, ports_of

log = logging.getLogger("lora_edge")


class Components:
    """Graphs by component name.

    Attributes:
        opened: how many sessions have been opened so far; it stands still after the first request.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._graphs: dict[str, Graph] = {}
        self._scopes = {name: list(backend.scopes(component)) for name, component in bundle.components.items()}
        self._lacks = {name: self._lacking(name) for name in bundle.components}
        self.opened = 0

    @property
    def scopes(self) -> dict[str, str]:
        """Component with slots -> what its graph takes."""
        return {table.component: self._scopes[table.component][0].name for table in self._bundle.tables}

    @property
    def held(self) -> int:
        """Bytes that graphs in parts hold from step to step."""
        return sum(graph.nbytes for graph in self._graphs.values() if isinstance(graph, Parts))

    def serve(self, adapter: Adapter) -> None:
        """Change over to the narrowest graphs that take what an adapter changes, if those in use do not.

        Raises:
            AdapterMismatch: the engine was opened for graphs that do not.
        """
        for name, part in adapter.components.items():
            self._widen(name, ports_of(part, self._bundle.component(name).table))

    def _widen(self, name: str, ports: Iterable[str]) -> None:
        wanted = self._lacks[name].intersection(ports)
        if not wanted:
            return
        if len(self._scopes[name]) == 1:
            raise AdapterMismatch(
                f"{min(wanted)} is no input of the graph that was asked for; it takes {self._scopes[name][0].takes}: "
                'open the engine with slots="auto"'
            )
        del self._scopes[name][0]
        self._lacks[name] = self._lacking(name)
        was_open = self._graphs.pop(name, None) is not None
        self._widen(name, wanted)
        if was_open:
            self.graph(name)

    def _lacking(self, name: str) -> frozenset[str]:
        """Ports of the contract that the graph in use does not have."""
        table = self._bundle.component(name).table
        return ALL.ports(table) - self._scopes[name][0].ports(table)

    def graph(self, name: str) -> Graph:
        """The graph of a component.

        Raises:
            ComponentMissing: the bundle has none of that name.
            BundleDamaged: the backend cannot read its files.
        """
        if name not in self._graphs:
            component = self._bundle.component(name)
            scope = self._scopes[name][0]
            log.info("opening the %s on %s for %s", name, self._backend.name, scope.takes)
            self._graphs[name] = self._backend.open_graph(component, scope)
            self.opened += 1
        return self._graphs[name]

    def run(self, name: str, inputs: Mapping[str, Any], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a component once.

        Args:
            name: of the component.
            inputs: plain inputs, cast to the graph's types; a scalar stands for an array of one. Adapter inputs of
                the graph contract may be among them.
            feeds: adapter inputs made by `Swap`.

        Raises:
            RequestError: an input is missing, unknown, or of another shape.
            GraphFailed: the graph refused what it was fed.
        """
        self._bundle.component(name)
        self._widen(name, chain(feeds, inputs))  # adapters of another engine, or inputs given by name
        graph = self.graph(name)
        plain, optional = graph.inputs, graph.optional
        missing = plain.keys() - inputs.keys()
        strange = [key for key in inputs if key not in plain and key not in optional]
        if missing or strange:
            raise RequestError(
                f"{name} takes {', '.join(plain)}; "
                + "; ".join(
                    f"{word}: {', '.join(sorted(names))}"
                    for word, names in (("missing", missing), ("unknown", strange))
                    if names
                )
            )
        cast = {key: _cast(f"{name}.{key}", array, plain.get(key) or optional[key]) for key, array in inputs.items()}
        return graph.run({**cast, **feeds})


def _cast(what: str, array: Any, port: GraphInput) -> Array:
    cast = np.ascontiguousarray(array, dtype=port.dtype)  # a scalar becomes [1]
    fits = len(cast.shape) == len(port.shape) and all(
        isinstance(wanted, str) or wanted is None or wanted == size
        for wanted, size in zip(port.shape, cast.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in port.shape)
        raise RequestError(f"{what} has the shape {list(cast.shape)}; it must be [{wanted}]")
    return cast
