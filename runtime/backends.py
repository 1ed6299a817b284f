"""Backends: what can run the graphs. A new one is a file with a `Graph` and one line in BACKENDS."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_edge.bundle import Bundle, Component
from lora_edge.errors import BackendUnavailable, ComponentMissing, RequestError, first_line
from lora_edge.graph import Graph, OpenGraph
from lora_edge.parts import Parts
from lora_edge.runtime.auto import Machine, best
from lora_edge.runtime.coreml.graph import OpenPackage, PackagedGraph, Runner
from lora_edge.runtime.coreml.layout import FixedRank
from lora_edge.runtime.coreml.manifest import Packages
from lora_edge.runtime.coreml.reference import ReferencePackage
from lora_edge.runtime.layout import Layout, SideBySide
from lora_edge.runtime.programparts import open_parts, program_of
from lora_edge.runtime.session import Session, check_arena, check_providers
from lora_edge.scope import ALL, SCOPES, Scope


@dataclass(frozen=True)
class Wishes:
    """What a caller asks of a backend.

    Raises:
        RequestError: `slots` or `arena` is something that there is not, whether or not the backend looks at it.

    Attributes:
        providers: execution providers or compute units by name, None for the backend's own choice.
        threads: of one run; 0 takes one per physical core.
        fit_rank: whether graphs of a fixed rank may cut adapters by SVD to fit.
        precision: to compute in: "fp32", "fp16", "bf16", None for the backend's own choice.
        arena: who keeps the memory of intermediate results of onnxruntime, see `runtime.session.Arena`.
        slots: a scope by name, "auto" to begin with the narrowest and widen it as adapters need.
        room: bytes that graphs in parts may hold of what they made for adapters, see `lora_edge.parts`.
    """

    providers: Sequence[str] | None = None
    threads: int = 0
    fit_rank: bool = False
    precision: str | None = None
    arena: str = "shared"
    slots: str = "auto"
    room: int = 0

    def __post_init__(self) -> None:
        check_arena(self.arena)
        if self.slots != "auto" and self.slots not in SCOPES:
            raise RequestError(f"there are no slots {self.slots!r}; there are auto, {', '.join(SCOPES)}")


@dataclass(frozen=True)
class Backend:
    """A backend, chosen for one bundle.

    Attributes:
        name: as in `Engine.open(backend=...)`.
        why: why it was chosen, for a person.
        providers: onnxruntime's execution providers, or the devices of another backend.
        open_graph: opens the graph of a component that takes a scope.
        scopes: the scopes that it has graphs of a component for, from narrow to wide.
        layout: how adapters lie in the inputs of its graphs.
        weights: what paths of the bundle's files have in them that hold its weights.
        latent: (height, width) in latents where its graphs have one size, None where it is free.
        facts: what else `Engine.info` tells.
    """

    name: str
    why: str
    providers: tuple[str, ...]
    open_graph: Callable[[Component, Scope], Graph]
    layout: Layout
    weights: str = ".onnx"
    latent: tuple[int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    scopes: Callable[[Component], Sequence[Scope]] = lambda component: (ALL,)


def _onnxruntime(bundle: Bundle, wishes: Wishes) -> Backend:
    _check_fixed("onnxruntime", "fp32", wishes)
    why = "execution providers as asked for" if wishes.providers else "the CPU; name execution providers for others"
    chosen = tuple(check_providers(wishes.providers or ["CPUExecutionProvider"]))

    arena = check_arena(wishes.arena)

    def open_graph(component: Component, scope: Scope) -> Graph:
        return _opened(
            component, "onnxruntime", scope, lambda path: Session(path, chosen, wishes.threads, arena), wishes.room
        )

    scopes = partial(_scopes, "onnxruntime", wishes.slots)
    return Backend("onnxruntime", why, chosen, open_graph, SideBySide(bundle), scopes=scopes)


def _scopes(backend: str, wish: str, component: Component) -> Sequence[Scope]:
    """The graphs to choose from: all, or the one asked for; where a component lacks it, the next wider one."""
    wide = 0 if wish == "auto" else list(SCOPES).index(wish)
    made = component.scopes(backend)
    enough = [scope for scope in list(SCOPES.values())[wide:] if scope.name in made]
    return enough if wish == "auto" else enough[:1]


def _opened(component: Component, backend: str, scope: Scope, open_file: OpenGraph, room: int) -> Graph:
    """The graph of a component that takes a scope: in parts, where the bundle has them."""
    if parts := component.parts.get(backend, {}).get(scope.name):
        return Parts([open_file(path) for path in parts], room=room)
    return open_file(component.graphs[backend][scope.name])


def _check_fixed(name: str, has: str, wishes: Wishes) -> None:
    """Refuse a precision that is not the one that the graphs were made for."""
    if wishes.precision not in (None, has):
        raise BackendUnavailable(f"{name} computes these graphs in {has}, and not in {wishes.precision}")


@contextmanager
def _needing(backend: str, library: str) -> Iterator[None]:
    """Say which extra installs what an import lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"the backend {backend} needs {library}: pip install 'lora-edge[{backend}]' ({first_line(error)})"
        ) from error


def _torch(bundle: Bundle, wishes: Wishes) -> Backend:
    with _needing("torch", "PyTorch"):
        from lora_edge.runtime import torchprogram
    device = torchprogram.check_device(wishes.providers)
    precision = torchprogram.check_precision(wishes.precision)

    def open_graph(component: Component, scope: Scope) -> Graph:
        parts = open_parts(component.graph, program_of(bundle, component), component.table)
        return torchprogram.TorchGraph(parts, device, precision, wishes.threads)

    why = "the device as asked for" if wishes.providers else "asked for, on the best device that torch has here"
    facts = {"precision": precision}
    return Backend("torch", why, (device,), open_graph, SideBySide(bundle), ".onnx.data", facts=facts)


def _openvino(bundle: Bundle, wishes: Wishes) -> Backend:
    with _needing("openvino", "OpenVINO"):
        from lora_edge.runtime import openvino
    device = openvino.check_device(wishes.providers)
    precision = openvino.check_precision(wishes.precision)
    lacking = [component.name for component in bundle.components.values() if not component.scopes("openvino")]
    if lacking:
        raise ComponentMissing(f"{bundle.folder} has no graph of the {lacking[0]} for openvino; export it again")

    def open_graph(component: Component, scope: Scope) -> Graph:
        norms, ids = component.norms(), component.config.get("vocab_size")

        def open_file(path: Path) -> Graph:
            return openvino.OpenVinoGraph(path, component.table, norms, precision, wishes.threads, ids)

        return _opened(component, "openvino", scope, open_file, wishes.room)

    scopes = partial(_scopes, "openvino", wishes.slots)
    facts = {"precision": precision, "device": openvino.device_name()}
    return Backend("openvino", "asked for", (device,), open_graph, SideBySide(bundle), facts=facts, scopes=scopes)


def _mil_reference(bundle: Bundle, wishes: Wishes) -> Backend:
    if wishes.providers:
        raise BackendUnavailable(f"mil-reference computes in numpy and has no {wishes.providers[0]}")
    why = "asked for: the Core ML packages, computed operation by operation with their rounding"
    packages = Packages.open(bundle)

    def open_package(path: Path) -> Runner:
        return ReferencePackage(path, packages.precision)

    return _packaged("mil-reference", why, "numpy", bundle, packages, open_package, wishes)


def _coreml(bundle: Bundle, wishes: Wishes) -> Backend:
    from lora_edge.runtime.coreml.machine import MachinePackage, check_units, tools

    tools()
    units = check_units(wishes.providers)

    def open_package(path: Path) -> Runner:
        return MachinePackage(path, units)

    why = "asked for: Core ML on the compute units " + units
    return _packaged("coreml", why, units, bundle, Packages.open(bundle), open_package, wishes)


def _packaged(
    name: str, why: str, device: str, bundle: Bundle, packages: Packages, open_package: OpenPackage, wishes: Wishes
) -> Backend:
    """A backend over the bundle's Core ML packages."""

    def open_graph(component: Component, scope: Scope) -> Graph:
        return PackagedGraph(component.name, packages.component(component.name), open_package)

    _check_fixed(name, packages.precision, wishes)
    layout = FixedRank(bundle, packages, wishes.fit_rank)
    held = {part: [stage.path.name for stage in made.stages] for part, made in packages.components.items()}
    facts = {"packages": held, "precision": packages.precision, "rank": packages.rank}
    return Backend(name, why, (device,), open_graph, layout, "coreml/", packages.latent, facts)


BACKENDS: Mapping[str, Callable[[Bundle, Wishes], Backend]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "openvino": _openvino,
    "coreml": _coreml,
    "mil-reference": _mil_reference,
}


def choose(name: str, bundle: Bundle, wishes: Wishes, machine: Machine | None = None) -> Backend:
    """The backend of that name, or for "auto" the best that is here.

    Args:
        name: a key of BACKENDS, or "auto".
        bundle: what it is to run.
        wishes: how; providers that are named are onnxruntime's, where "auto" is to choose.
        machine: to choose for, this one where None is said.

    Raises:
        BackendUnavailable: there is none of that name, or it is not installed, or a provider is not.
        BundleError: the bundle lacks the graphs that the backend runs, or they are damaged.
    """
    if name == "auto" and not wishes.providers:
        found = best(machine or Machine(), bundle, wishes.precision)
        settings = {key: value for key, value in found.settings.items() if getattr(wishes, key) is None}
        return replace(BACKENDS[found.backend](bundle, replace(wishes, **settings)), why=found.why)
    wanted = "onnxruntime" if name == "auto" else name
    if wanted not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    return BACKENDS[wanted](bundle, wishes)
