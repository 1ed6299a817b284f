"""The limit: the same graphs without LoRA inputs, as a library runs any graph."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np

from benchmarks.contestants.base import Contestant
from benchmarks.contestants.pipeline import image


class Plain(Contestant):
    """Graphs by component, opened when first used; `library` is the one that they were written for, unless settings
    name another."""

    library: ClassVar[str]

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        library = settings.get("library", self.library)
        self.opened = cache(lambda component: self.open(self.model["plain"][library][component]))

    def open(self, path: str) -> Any:
        """What runs a graph file."""
        raise NotImplementedError

    def run(self, graph: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Its outputs by name."""
        raise NotImplementedError

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self.run(self.opened("unet"), inputs)["out_sample"]

    def image(self, latents: int, steps: int) -> None:
        image(lambda name, inputs: self.run(self.opened(name), inputs), self.model, latents, steps)
