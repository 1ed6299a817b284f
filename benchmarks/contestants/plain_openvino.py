"""The limit: the same graphs without LoRA inputs, as OpenVINO runs any ONNX file."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import openvino

from benchmarks.contestants.base import Contestant, serve
from benchmarks.contestants.pipeline import image


class PlainOpenVino(Contestant):
    """Compiled for the CPU at one precision, with free shapes as in the file."""

    distributions: ClassVar[tuple[str, ...]] = ("openvino",)

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._request = cache(self._open)

    def _open(self, component: str) -> openvino.InferRequest:
        core = openvino.Core()
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.settings["precision"]}
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        read = core.read_model(self.model["plain"][component])
        return core.compile_model(read, "CPU", options).create_infer_request()

    def _run(self, component: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._request(component)
        ports = {port.any_name: port for port in request.model_inputs}
        results = request.infer(
            {name: np.asarray(inputs[name], port.element_type.to_dtype()) for name, port in ports.items()}
        )
        return {port.any_name: results[port] for port in request.model_outputs}

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._run("unet", inputs)["out_sample"]

    def image(self, latents: int, steps: int) -> None:
        image(self._run, self.model, latents, steps)


if __name__ == "__main__":
    serve(PlainOpenVino)
