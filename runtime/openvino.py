"""The OpenVINO backend: the only file that imports openvino, and imported by nobody who did not ask for it."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino

from lora_edge.arrays import Array, over
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed
from lora_edge.feeds import check_ids, check_lanes, check_names, check_rows
from lora_edge.graph import GraphInput
from lora_edge.neutral import defaults
from lora_edge.runtime.memory import forget_pages
from lora_edge.slots import HELD, SCALES, TOKENS, SlotTable

DEVICE = "CPU"
PRECISIONS: Mapping[str, tuple[str, Any]] = {  # what the processor must have natively, what OpenVINO calls it
    "fp32": ("FP32", openvino.Type.f32),
    "bf16": ("BF16", openvino.Type.bf16),
    "fp16": ("FP16", openvino.Type.f16),
}
OWN_CHOICE = ("bf16", "fp32")  # best first
DTYPES = {"f32": np.float32, "i64": np.int64, "bf16": np.float16, "f16": np.float16}  # numpy has no bfloat16
FAILED: list[Any] = []  # what a run that gave up half way left undone is still among the tasks of its thread


@cache
def _core() -> Any:
    return openvino.Core()


def device_name() -> str:
    """What OpenVINO calls the processor."""
    return str(_core().get_property(DEVICE, "FULL_DEVICE_NAME"))


def check_device(providers: Sequence[str] | None) -> str:
    """The device to run on.

    Raises:
        BackendUnavailable: it is another one than the CPU.
    """
    wanted = tuple(providers or (DEVICE,))
    if wanted != (DEVICE,):
        raise BackendUnavailable(f"openvino runs these graphs on the {DEVICE}, and not on {', '.join(wanted)}")
    return DEVICE


def check_precision(precision: str | None) -> str:
    """The precision to compute in; where nothing is said, bfloat16 on a processor that has it.

    Raises:
        BackendUnavailable: it is not one of PRECISIONS, or the processor does not have it.
    """
    has = _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    here = [name for name, (needed, _) in PRECISIONS.items() if needed in has]
    wanted = precision or next(name for name in OWN_CHOICE if name in here)
    if wanted not in here:
        raise BackendUnavailable(f"openvino computes in {' or '.join(here)} on this processor, and not in {wanted}")
    return wanted


_Place: TypeAlias = tuple[dict[str, Any], dict[str, Array]]
"""Tensors of what is held, and the arrays over them."""


class OpenVinoGraph:
    """A graph file with plain inputs, compiled once (the `Graph` of this backend).

    Adapter inputs have defaults all the same: what is not fed holds what changes nothing. Inputs and outputs are
    float32 in every precision. Weights are read from pages of the bundle's own file, and those let go of when OpenVINO
    has laid them out as the processor likes them.

    Args:
        path: a `.onnx` file, its external data beside it.
        table: the component's slots.
        norms: see `Component.norms`.
        precision: one of PRECISIONS.
        threads: of one run; 0 takes one per physical core.
        vocabulary: token ids of the base, for graphs with `lora.tokens`: OpenVINO reads zeros for ids beyond a table.

    Raises:
        BundleDamaged: the file is not a graph that OpenVINO can read.
    """

    _place: _Place

    def __init__(
        self,
        path: Path,
        table: SlotTable,
        norms: Mapping[str, Array],
        precision: str = "fp32",
        threads: int = 0,
        vocabulary: int | None = None,
    ) -> None:
        self._path, self._precision = path, PRECISIONS[precision][1]
        self._settings = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "PERFORMANCE_HINT": "LATENCY",
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        self._compile()
        self._fitting: set[tuple[tuple[int, ...], ...]] = set()  # shapes of plain inputs that the graph takes
        ports = {port.any_name: _described(port) for port in self._compiled.inputs}
        self.outputs = tuple(port.any_name for port in self._compiled.outputs)
        self._defaults = defaults(table, norms, {name: port.shape for name, port in ports.items()})
        self.inputs: Mapping[str, GraphInput] = {n: port for n, port in ports.items() if n not in self._defaults}
        self.optional: Mapping[str, GraphInput] = {name: ports[name] for name in self._defaults}
        self._plain = [name for name in self.inputs if not name.startswith(HELD)]
        self._table, self._vocabulary = table, vocabulary
        self._reset()

    @property
    def precision(self) -> str:
        """What OpenVINO says that it computes in."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    @property
    def place(self) -> "_Place | None":
        """See `Graph.place`."""
        return self._place if self._place[0] else None

    @place.setter
    def place(self, place: "_Place | None") -> None:
        self._place = place or ({}, {})
        for name, tensor in self._place[0].items():
            self._request.set_tensor(self._ports[name], tensor)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`. Adapter inputs stay bound, by identity, for as long as every run is fed the same arrays."""
        check_names("graph", feeds, self.inputs, self._defaults)
        self._check_ids(feeds)
        if self._plain:
            check_rows([feeds[name] for name in self._plain], feeds.get(SCALES))
        fresh = self._check_shapes({name: feeds[name].shape for name in self._plain})
        changed = [name for name, array in feeds.items() if self._bound.get(name) is not array]
        gone = self._bound.keys() - feeds.keys()
        if gone or not self.inputs.keys() >= {*changed}:  # what is bound already was checked then
            check_lanes(self._table, {**self._defaults, **feeds})
        try:
            for name in {*changed, *self._plain}:  # plain inputs may be refilled in place
                self._bind(name, feeds[name])
            for name in gone:  # what is fed no more has its default again
                self._bind(name, self._defaults[name])
                del self._bound[name]
            made = {name: self._blank(name) for name in self.outputs}
        except Exception as error:
            self._reset()
            raise GraphFailed(f"OpenVINO refused the inputs: {_last_line(error)}") from error
        try:
            self._request.infer(share_outputs=True)  # or what it made is copied, to be thrown away
        except Exception as error:
            self._recover()
            raise GraphFailed(f"OpenVINO could not run the graph: {_last_line(error)}") from error
        if fresh:  # that is when weights are laid out anew, and the file is read for it
            forget_pages(self._path.parent)
        results = {name: self._result(name, tensor) for name, tensor in made.items()}
        if not all(array.size or name.startswith(HELD) for name, array in results.items()):
            # with one thread, it gives up without a word
            self._recover()
            raise GraphFailed("OpenVINO could not run the graph: shapes of inputs do not agree with one another")
        return results

    def _compile(self) -> None:
        try:
            self._model = self._in_held_precision(_core().read_model(self._path))
            self._compiled = _core().compile_model(self._model, DEVICE, self._settings)
        except Exception as error:
            raise BundleDamaged(f"OpenVINO cannot open {self._path}: {_last_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        # by a name, each would be looked for among all of them
        self._ports = {port.any_name: port for port in (*self._compiled.inputs, *self._compiled.outputs)}
        self._place = {}, {}

    def _in_held_precision(self, model: Any) -> Any:
        """Parts hand over what one holds for another as they compute it: rounding it twice would change nothing."""
        ports = openvino.preprocess.PrePostProcessor(model)
        for sides, side in ((model.inputs, ports.input), (model.outputs, ports.output)):
            for port in sides:
                if port.any_name.startswith(HELD):
                    side(port.any_name).tensor().set_element_type(self._precision)
        return ports.build()

    def _recover(self) -> None:
        """Compile anew: a graph that gave up half way never works again, and the process ends if it is let go."""
        FAILED.append((self._request, self._compiled))
        self._compile()
        self._reset()

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Ask OpenVINO whether every layer takes what these shapes make of it, before a run finds out half way.

        Returns:
            Whether it was never asked of them before.
        """
        key = tuple(shapes.values())
        if key in self._fitting:
            return False
        try:
            self._model.reshape({name: list(shape) for name, shape in shapes.items()})
        except Exception as error:
            raise GraphFailed(f"OpenVINO refused the inputs: {_last_line(error)}") from error
        self._fitting.add(key)
        return True

    def _blank(self, name: str) -> Any:
        """Where the next run writes an output: memory of its own, which becomes the caller's.

        What a part holds for another goes where it was: asking for new pages would take longer than to fill them.
        """
        tensors, _ = self._place
        if name in tensors:
            return tensors[name]
        port = self._ports[name]
        shape = [0 if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]
        made = openvino.Tensor(port.get_element_type(), openvino.Shape(shape))
        self._request.set_tensor(port, made)
        if name.startswith(HELD):
            tensors[name] = made
        return made

    def _result(self, name: str, tensor: Any) -> Array:
        """What was written; of what is held the same array, as long as it lies where it did, and is bound there."""
        array = np.asarray(tensor.data)
        tensors, results = self._place
        last = results.get(name)
        if last is not None and (last.ctypes.data, last.shape) == (array.ctypes.data, array.shape):
            return last
        if name in tensors:
            results[name] = array
        return array

    def _check_ids(self, feeds: Mapping[str, Array]) -> None:
        if TOKENS not in self._defaults or self._vocabulary is None:
            return
        (name,) = self.inputs
        check_ids(name, feeds[name], self._vocabulary, len(feeds.get(TOKENS, ())))

    def _bind(self, name: str, array: Array) -> None:
        """Hand an array over where it lies; nothing is copied."""
        readable = _readable(array)
        if name.startswith(HELD):
            tensor = openvino.Tensor(readable, openvino.Shape(readable.shape), self._precision)
        else:
            tensor = openvino.Tensor(readable, shared_memory=True)
        self._request.set_tensor(self._ports[name], tensor)
        self._bound[name], self._held[name] = array, readable

    def _reset(self) -> None:
        """Give every adapter input its default."""
        self._bound: dict[str, Array] = {}
        self._held: dict[str, Array] = {}  # where the request reads: OpenVINO keeps no hold of it
        for name, array in self._defaults.items():
            self._bind(name, array)
        self._bound.clear()


def _readable(array: Array) -> Array:
    """The array, side by side in memory; OpenVINO takes none that is read-only, though it writes to no input."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else over(array, array)


def _described(port: Any) -> GraphInput:
    shape = port.get_partial_shape()
    axes = tuple("any" if axis.is_dynamic else axis.get_length() for axis in shape)
    return GraphInput(axes, np.dtype(DTYPES[port.get_element_type().to_string()]))


def _last_line(error: Exception) -> str:
    """OpenVINO tells first where it was, and what was wrong at the end."""
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
