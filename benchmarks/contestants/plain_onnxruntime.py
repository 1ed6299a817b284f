"""The limit: the same graphs without LoRA inputs, as onnxruntime runs any graph by default."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from benchmarks.contestants.base import Contestant, as_wanted, serve
from benchmarks.contestants.pipeline import image


class PlainOnnxRuntime(Contestant):
    """Sessions with onnxruntime's own defaults, opened when first used."""

    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._session = cache(self._open)

    def _open(self, component: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        path = self.model["plain"][component]
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _run(self, component: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session(component)
        feeds = as_wanted(inputs, session.get_inputs())
        return dict(zip((port.name for port in session.get_outputs()), session.run(None, feeds), strict=True))

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._run("unet", inputs)["out_sample"]

    def image(self, latents: int, steps: int) -> None:
        image(self._run, self.model, latents, steps)


if __name__ == "__main__":
    serve(PlainOnnxRuntime)
