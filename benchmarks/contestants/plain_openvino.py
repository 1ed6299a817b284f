"""Graphs without LoRA inputs, as OpenVINO runs any ONNX file."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import openvino

from benchmarks.contestants.base import serve
from benchmarks.contestants.plain import Plain

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class PlainOpenVino(Plain):
    """Compiled for the CPU at one precision, with free shapes as in the file."""

    distributions: ClassVar[tuple[str, ...]] = ("openvino",)
    library: ClassVar[str] = "openvino"

    def open(self, path: str) -> openvino.InferRequest:
        core = openvino.Core()
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[self.settings["precision"]]}
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        return core.compile_model(core.read_model(path), "CPU", options).create_infer_request()

    def run(self, graph: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ports = {port.any_name: port for port in graph.model_inputs}
        results = graph.infer(
            {name: np.asarray(inputs[name], port.element_type.to_dtype()) for name, port in ports.items()}
        )
        return {port.any_name: results[port] for port in graph.model_outputs}


if __name__ == "__main__":
    serve(PlainOpenVino)
