"""Backends: what can run the graphs. A new one is a file with a `Graph` and one line in BACKENDS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_edge.errors import BackendUnavailable
from lora_edge.graph import Graph, OpenGraph
from lora_edge.runtime.session import Session, check_providers


@dataclass(frozen=True)
class Backend:
    """A backend, chosen.

    Attributes:
        name: as in `Engine.open(backend=...)`.
        why: why it was chosen, for a person.
        providers: onnxruntime's execution providers, or the devices of another backend.
        open_graph: opens one graph file.
    """

    name: str
    why: str
    providers: tuple[str, ...]
    open_graph: OpenGraph


def _onnxruntime(providers: Sequence[str] | None, threads: int) -> Backend:
    why = "execution providers as asked for" if providers else "the CPU; name execution providers for anything else"
    chosen = tuple(check_providers(providers or ["CPUExecutionProvider"]))

    def open_graph(path: Path) -> Graph:
        return Session(path, chosen, threads)

    return Backend("onnxruntime", why, chosen, open_graph)


BACKENDS: Mapping[str, Callable[[Sequence[str] | None, int], Backend]] = {
    "onnxruntime": _onnxruntime,
}
AUTO = ("onnxruntime",)  # best first


def choose(name: str, providers: Sequence[str] | None = None, threads: int = 0) -> Backend:
    """The backend of that name, or for "auto" the best that is here.

    Args:
        name: a key of BACKENDS, or "auto".
        providers: execution providers or devices by name, None for the backend's own choice.
        threads: of one run; 0 takes one per physical core.

    Raises:
        BackendUnavailable: there is none of that name, or it is not installed, or a provider is not.
    """
    wanted = AUTO[0] if name == "auto" else name
    if wanted not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    return BACKENDS[wanted](providers, threads)
