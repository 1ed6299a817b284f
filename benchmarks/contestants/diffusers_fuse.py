"""Merge and reload: diffusers' `fuse_lora` and `unfuse_lora`, as "Merge LoRAs" of its guide says."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contestants.base import serve
from benchmarks.contestants.diffusers_peft import DiffusersPeft


class DiffusersFuse(DiffusersPeft):
    """Every change takes the old adapters out of the weights and adds the new ones."""

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._fused = False

    def unload(self, handle: str) -> None:
        self.activate([])
        super().unload(handle)

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if self._fused:
            self._pipe.unfuse_lora(components=["unet"])
            self._fused = False
        super().activate(adapters)
        if adapters:
            self._pipe.fuse_lora(components=["unet"], adapter_names=[name for name, _ in adapters])
            self._fused = True


if __name__ == "__main__":
    serve(DiffusersFuse)
