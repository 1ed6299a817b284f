"""diffusers with PEFT, eager: `load_lora_weights` and `set_adapters`, as its guide on LoRA says."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.contestants.base import PROMPT, Cannot, Contestant, serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class DiffusersPeft(Contestant):
    """One pipeline; every adapter is loaded under a name of its own and chosen by it."""

    distributions: ClassVar[tuple[str, ...]] = ("diffusers", "peft", "torch", "transformers")

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        if threads:
            torch.set_num_threads(threads)
        self._dtype = DTYPES[settings["precision"]]
        self._pipe = StableDiffusionPipeline.from_pretrained(model["model"], dtype=self._dtype)
        self._pipe.set_progress_bar_config(disable=True)
        self._names = (f"adapter{index}" for index in count())
        self._on = True

    def load(self, path: str) -> str:
        name = next(self._names)
        self._pipe.load_lora_weights(str(Path(path).parent), weight_name=Path(path).name, adapter_name=name)
        return name

    def unload(self, handle: str) -> None:
        self._pipe.delete_adapters(handle)

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if any(not isinstance(multiplier, float) for _, multiplier in adapters):
            raise Cannot("one multiplier holds for the whole batch")
        if not adapters:
            self._on = False
            return self._pipe.disable_lora() if self._pipe.get_list_adapters() else None
        if not self._on:
            self._on = True
            self._pipe.enable_lora()
        return self._pipe.set_adapters([name for name, _ in adapters], [multiplier for _, multiplier in adapters])

    @torch.no_grad()
    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        sample, states = (
            torch.from_numpy(inputs[name]).to(self._dtype) for name in ("sample", "encoder_hidden_states")
        )
        made = self._pipe.unet(sample, int(inputs["timestep"][0]), encoder_hidden_states=states, return_dict=False)[0]
        return made.float().numpy()

    def image(self, latents: int, steps: int) -> None:
        size = latents * self.model["scale"]
        self._pipe(PROMPT, num_inference_steps=steps, width=size, height=size, guidance_scale=4.0)


if __name__ == "__main__":
    serve(DiffusersPeft)
