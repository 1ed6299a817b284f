"""The onnxruntime backend: the only file that imports onnxruntime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lora_edge.arrays import Array
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed, RequestError, first_line
from lora_edge.graph import GraphInput

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


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


class Session:
    """One graph file, opened once (the `Graph` of this backend)."""

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0) -> None:
        """Open a graph.

        Args:
            path: a `.onnx` file, its external data beside it.
            providers: execution providers by name, tried in order for every node.
            threads: of one run; 0 takes one per physical core.

        Raises:
            BackendUnavailable: a provider is not installed, or cannot be set up.
            BundleDamaged: the file is not a graph that onnxruntime can read.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; a warning per optional input would bury it
        options.intra_op_num_threads = threads
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
        self._inputs = _described(self._session.get_inputs())
        self._optional = _described(self._session.get_overridable_initializers())
        self._outputs = tuple(port.name for port in self._session.get_outputs())

    @property
    def inputs(self) -> Mapping[str, GraphInput]:
        return self._inputs

    @property
    def optional(self) -> Mapping[str, GraphInput]:
        return self._optional

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    @property
    def providers(self) -> list[str]:
        """Execution providers that the graph runs on."""
        return list(self._session.get_providers())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(None, dict(feeds))
        except Exception as error:
            raise GraphFailed(f"onnxruntime refused the inputs: {first_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))


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


def _described(ports: Sequence[Any]) -> dict[str, GraphInput]:
    return {port.name: GraphInput(tuple(port.shape), np.dtype(_DTYPES[port.type])) for port in ports}
