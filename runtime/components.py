"""The components of an open bundle: each graph loaded when it is first used, and never again."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.graph import Graph, GraphInput
from lora_edge.runtime.backends import Backend

log = logging.getLogger("lora_edge")


class Components:
    """Graphs by component name.

    Attributes:
        opened: how many sessions have been opened so far; it stands still after the first request.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._graphs: dict[str, Graph] = {}
        self.opened = 0

    def graph(self, name: str) -> Graph:
        """The graph of a component.

        Raises:
            ComponentMissing: the bundle has none of that name.
            BundleDamaged: the backend cannot read its files.
        """
        if name not in self._graphs:
            component = self._bundle.component(name)
            log.info("opening the %s on %s", name, self._backend.name)
            self._graphs[name] = self._backend.open_graph(component)
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
        graph = self.graph(name)
        known = {**graph.optional, **graph.inputs}
        missing, strange = graph.inputs.keys() - inputs.keys(), inputs.keys() - known.keys()
        if missing or strange:
            raise RequestError(
                f"{name} takes {', '.join(graph.inputs)}; "
                + "; ".join(
                    f"{word}: {', '.join(sorted(names))}"
                    for word, names in (("missing", missing), ("unknown", strange))
                    if names
                )
            )
        cast = {key: _cast(f"{name}.{key}", array, known[key]) for key, array in inputs.items()}
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
