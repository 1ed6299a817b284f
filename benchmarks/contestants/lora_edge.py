"""lora-edge: `Engine.load_adapter`, `Engine.feeds`, `Engine.run`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import lora_edge
from benchmarks.contestants.base import Cannot, Contestant, serve
from benchmarks.contestants.pipeline import image


class LoraEdge(Contestant):
    """Resident adapters are arrays; activating them chooses which of them the next run is fed."""

    distributions: ClassVar[tuple[str, ...]] = ("lora-edge", "onnxruntime")

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        try:
            self._engine = lora_edge.Engine.open(model["bundle"], threads=threads, **settings)
        except (TypeError, lora_edge.LoraEdgeError) as error:
            raise Cannot(f"this version or machine: {error}") from None
        self._active: list[tuple[Any, Any]] = []

    def load(self, path: str) -> Any:
        return self._engine.load_adapter(path)

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        self._active = list(adapters)
        self._engine.feeds("unet", self._active)

    def moved(self) -> int | None:
        return int(self._engine.info["bytes_copied"]["unet"])

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._engine.run("unet", inputs, self._active)["out_sample"]

    def image(self, latents: int, steps: int) -> None:
        image(lambda component, inputs: self._engine.run(component, inputs, self._active), self.model, latents, steps)


if __name__ == "__main__":
    serve(LoraEdge)
