"""ONNX Runtime's own adapters: `LoraAdapter.Load` and `RunOptions.add_active_adapter`, on the bundle's graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from benchmarks.contestants.base import Cannot, Contestant, as_wanted, serve


class OnnxRuntimeAdapter(Contestant):
    """It knows adapters with all their numbers in them: one at a time, at multiplier 1."""

    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    form: ClassVar[str] = "onnx_adapter"

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        graph = Path(model["bundle"]) / "unet" / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._options = onnxruntime.RunOptions()

    def load(self, path: str) -> Any:
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(path)
        return adapter

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if len(adapters) > 1:
            raise Cannot("of several adapters with the same inputs the first one wins")
        if any(multiplier != 1.0 for _, multiplier in adapters):
            raise Cannot("an adapter has no multiplier")
        self._options = onnxruntime.RunOptions()
        for adapter, _ in adapters:
            self._options.add_active_adapter(adapter)

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        feeds = as_wanted(inputs, self._session.get_inputs())
        return self._session.run(["out_sample"], feeds, self._options)[0]


if __name__ == "__main__":
    serve(OnnxRuntimeAdapter)
