"""The onnxruntime backend: the only file that imports onnxruntime."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import onnxruntime

from lora_edge.arrays import Array, over
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed, RequestError, first_line
from lora_edge.graph import GraphInput
from lora_edge.runtime.memory import forget_pages
from lora_edge.slots import HELD, RANKS, SCALES

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


Arena: TypeAlias = Literal["shared", "own", "none"]
"""Who keeps the memory of intermediate results on the CPU: one arena for all sessions of the process, one for each
session, or nobody, which gives it back after each use and asks the system for it anew. Largest resident size of two
steps at 64 x 64 latents with guidance and a decoding, Stable Diffusion 1.5's size: 6.1, 7.6 and 6.0 GB; what stays
reserved afterwards, of it: 5.9, 7.4 and 3.5 GB. Processor time of a step of the demo model at 32 x 32: 1.02, 1 and
1.90 times that of "own"."""

ARENAS: tuple[Arena, ...] = get_args(Arena)

ON_CPU = ["CPUExecutionProvider"]
AS_REQUESTED = 1  # how an arena grows; by default it doubles


def providers_here() -> list[str]:
    """Execution providers of the installed onnxruntime, best first."""
    return list(onnxruntime.get_available_providers())


def check_providers(providers: Sequence[str]) -> list[str]:
    """Refuse a provider that onnxruntime would silently leave out.

    Raises:
        BackendUnavailable: with what is installed.
    """
    here = providers_here()
    missing = [provider for provider in providers if provider not in here]
    if missing:
        raise BackendUnavailable(
            f"onnxruntime has no {missing[0]} on this machine; it has {', '.join(here)}. "
            "CUDAExecutionProvider comes with the package onnxruntime-gpu, CoreMLExecutionProvider with macOS"
        )
    return list(providers)


def check_arena(arena: str) -> Arena:
    """Refuse an arena that there is not.

    Raises:
        RequestError: with those that there are.
    """
    for known in ARENAS:
        if arena == known:
            return known
    raise RequestError(f"there is no arena {arena!r}; there are {', '.join(ARENAS)}")


class Session:
    """One graph file, opened once (the `Graph` of this backend)."""

    def __init__(
        self,
        path: Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        arena: Arena = "shared",
        brief: bool = False,
    ) -> None:
        """Open a graph.

        Args:
            path: a `.onnx` file, its external data beside it.
            providers: execution providers by name, tried in order for every node.
            threads: of one run; 0 takes one per physical core.
            arena: where intermediate results lie, see `Arena`.
            brief: for few runs, in little memory. Nothing stays bound from run to run, and weights are not laid out
                anew as the processor likes them, which takes five times as long to open and the memory of a copy; the
                file's own pages are let go of after every run.

        Raises:
            BackendUnavailable: a provider is not installed, or cannot be set up.
            BundleDamaged: the file is not a graph that onnxruntime can read.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; a warning per optional input would bury it
        options.intra_op_num_threads = threads
        if arena == "shared":
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_cpu_mem_arena = arena != "none"
        if brief:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.force_spinning_stop", "1")  # threads of the next graph need the cores
        options.enable_mem_pattern = False  # ranks make shapes vary: a plan kept per shape would grow without end
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=check_providers(providers))
        except BackendUnavailable:
            raise
        except Exception as error:
            raise BundleDamaged(f"onnxruntime cannot open {path}: {first_line(error)}") from error
        lost = [name for name in providers if name not in self._session.get_providers()]
        if lost:
            raise BackendUnavailable(f"onnxruntime could not set up {lost[0]} on this machine (see its own messages)")
        self.inputs: Mapping[str, GraphInput] = _described(self._session.get_inputs())
        self.optional: Mapping[str, GraphInput] = _described(self._session.get_overridable_initializers())
        self._plain = {name for name in self.inputs if not name.startswith(HELD)}
        self.outputs = tuple(port.name for port in self._session.get_outputs())
        self._path, self._brief = path, brief
        self._holds = all(name.startswith(HELD) for name in self.outputs) and self.providers == ON_CPU and not brief
        self._ranked = _ranked(self._session, self.inputs)
        self.place: _Place | None = None
        self._unbind()

    @property
    def providers(self) -> list[str]:
        """Execution providers that the graph runs on."""
        return list(self._session.get_providers())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`. Adapter inputs stay bound, by identity, for as long as every run is fed the same arrays."""
        place, self.place = self.place, None  # a run that fails leaves none
        try:
            self._bind(feeds)
            shapes = _shapes(feeds, self._plain) if self._holds else _UNKNOWN
            kept = self._bind_outputs(place, shapes)
            self._session.run_with_iobinding(self._binding)
            results = kept if len(kept) == len(self.outputs) else {**self._results(), **kept}
        except Exception as error:
            self._unbind()
            raise GraphFailed(f"onnxruntime refused the inputs: {first_line(error)}") from error
        if self._holds:
            self.place = results, shapes
        if self._brief:
            self._unbind()
            forget_pages(self._path.parent)
        return dict(results)

    def _results(self) -> dict[str, Array]:
        """The outputs where onnxruntime left them, or copies of what lies on another device."""
        values = self._binding.get_outputs()
        if any(value.device_name() != "cpu" for value in values):
            return dict(zip(self.outputs, self._binding.copy_outputs_to_cpu(), strict=True))
        return {name: over(value.numpy(), value) for name, value in zip(self.outputs, values, strict=True)}

    def _bind(self, feeds: Mapping[str, Array]) -> None:
        """Hand over what has changed since the last run; nothing is copied, the arrays are used where they lie."""
        if self._bound.keys() - feeds.keys():  # what is fed no more has its default again
            self._unbind()
        for name, array in feeds.items():
            if name in self._plain or self._bound.get(name) is not array:  # plain inputs may be refilled in place
                self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
                self._bound[name] = array

    def _bind_outputs(self, place: "_Place | None", shapes: "_Shapes") -> Mapping[str, Array]:
        """Where results go: new memory, or where those of an earlier run lie, which are then returned.

        The latter is for what a part holds for another: asking for new pages would take longer than to fill them.
        """
        kept: Mapping[str, Array] = {}
        if place is not None:
            earlier, had = place
            same = [now == last for now, last in zip(shapes, had, strict=True)]
            kept = {name: array for name, array in earlier.items() if same[name in self._ranked]}
        for name in self.outputs:
            if name in kept:
                self._binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(kept[name]))
            else:
                self._binding.bind_output(name)
        return kept

    def _unbind(self) -> None:
        self._binding = self._session.io_binding()
        self._bound: dict[str, Array] = {}


_Shapes: TypeAlias = tuple[Hashable, Hashable]
_Place: TypeAlias = tuple[Mapping[str, Array], _Shapes]
"""What is held, and what its shapes followed from."""

_UNKNOWN: _Shapes = (None, None)


def _shapes(feeds: Mapping[str, Array], plain: Collection[str]) -> _Shapes:
    """What the shapes of held results follow from: those of weights, keys and values; those of factors too."""
    ranks, sets = feeds.get(RANKS, np.zeros(0)), len(feeds.get(SCALES, ()))
    weights = np.where(ranks > 0, sets, 1).tobytes(), *(feeds[name].shape for name in plain)
    return weights, (weights, ranks.tobytes(), sets)


@cache
def _share_arena() -> None:
    """Make the arena of the process; onnxruntime takes one for good."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(0, AS_REQUESTED, -1, -1))


def export_onnx_adapter(path: Path, tensors: Mapping[str, Array], adapter_version: int, model_version: int) -> None:
    """Write an adapter file of onnxruntime.

    Args:
        path: of the file, replaced if it is there.
        tensors: graph input -> array.
        adapter_version, model_version: int32, for whoever reads the file; onnxruntime itself compares neither.

    Raises:
        RequestError: the file cannot be written.
    """
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(adapter_version)
    made.set_model_version(model_version)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in sorted(tensors.items())}
    made.set_parameters(values)
    try:
        made.export_adapter(str(path))
    except Exception as error:
        raise RequestError(f"cannot write {path}: {first_line(error)}") from error


def _ranked(session: onnxruntime.InferenceSession, plain: Mapping[str, GraphInput]) -> set[str]:
    """Outputs with an axis that follows from ranks: one of a factor, or any but the first that no plain input has."""
    known = {axis for port in plain.values() for axis in port.shape}
    factors = {axis for port in session.get_overridable_initializers() for axis in port.shape[1:]}
    ranks = {axis for axis in factors if isinstance(axis, str)}
    return {
        port.name
        for port in session.get_outputs()
        if not ranks.isdisjoint(port.shape[:1])
        or any(axis not in known and not isinstance(axis, int) for axis in port.shape[1:])
    }


def _described(ports: Sequence[Any]) -> dict[str, GraphInput]:
    return {port.name: GraphInput(tuple(port.shape), np.dtype(_DTYPES[port.type])) for port in ports}
