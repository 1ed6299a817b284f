"""Graphs without LoRA inputs, as onnxruntime runs any graph by default."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from benchmarks.contestants.base import as_wanted, serve
from benchmarks.contestants.plain import Plain


class PlainOnnxRuntime(Plain):
    """Sessions with onnxruntime's own defaults."""

    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    library: ClassVar[str] = "onnxruntime"

    def open(self, path: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, graph: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = graph.run(None, as_wanted(inputs, graph.get_inputs()))
        return dict(zip((port.name for port in graph.get_outputs()), made, strict=True))


if __name__ == "__main__":
    serve(PlainOnnxRuntime)
