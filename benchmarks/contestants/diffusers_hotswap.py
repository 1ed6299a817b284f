"""diffusers with PEFT, compiled: `enable_lora_hotswap`, `load_lora_weights(hotswap=True)`, as its guide says.

The guide: enable it with the highest rank before the first adapter is loaded, load the adapter that changes the most
layers first, then compile, then replace its numbers in place.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants.base import Cannot, serve
from benchmarks.contestants.diffusers_peft import DiffusersPeft

NAME = "default"


class DiffusersHotswap(DiffusersPeft):
    """One adapter at a time; loading the next one replaces it."""

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._pipe.enable_lora_hotswap(target_rank=model["highest_rank"])
        self._swap(declared, hotswap=False)
        self._pipe.unet = torch.compile(self._pipe.unet)

    def _swap(self, path: str, hotswap: bool) -> None:
        place = Path(path)
        self._pipe.load_lora_weights(str(place.parent), weight_name=place.name, adapter_name=NAME, hotswap=hotswap)

    def load(self, path: str) -> str:
        self._swap(path, hotswap=True)
        self._held, self._multiplier = path, 1.0
        return path

    def unload(self, handle: str) -> None:
        """The next one takes its place."""

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if len(adapters) != 1:
            raise Cannot("the compiled model always holds one adapter")
        ((path, multiplier),) = adapters
        if path != self._held:
            raise Cannot("holds one adapter; the next one is read from its file")
        if not isinstance(multiplier, float):
            raise Cannot("one multiplier holds for the whole batch")
        if multiplier != self._multiplier:
            self._pipe.unet.set_adapters([NAME], [multiplier])
            self._multiplier = multiplier


if __name__ == "__main__":
    serve(DiffusersHotswap)
