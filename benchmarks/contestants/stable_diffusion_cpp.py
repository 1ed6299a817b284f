"""stable-diffusion.cpp by its Python package: adapters stand in the prompt and are merged into the weights.

It has no call for the UNet alone and none for a swap: a step is what lies between two calls of `progress_callback`, two
UNet evaluations with guidance; a swap happens inside `generate_image`, so it is what an image of the same kind with
another adapter takes longer.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from stable_diffusion_cpp import StableDiffusion

from benchmarks.contestants.base import PROMPT, Cannot, Contestant, serve


class StableDiffusionCpp(Contestant):
    """Weights as the checkpoint stores them, everything else at the package's defaults."""

    distributions: ClassVar[tuple[str, ...]] = ("stable-diffusion-cpp-python",)

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._model = StableDiffusion(
            model_path=model["older"],
            vae_decode_only=True,
            verbose=False,
            **({"n_threads": threads} if threads else {}),
        )
        self._tags = ""

    def load(self, path: str) -> str:
        return path

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if any(not isinstance(multiplier, float) for _, multiplier in adapters):
            raise Cannot("one multiplier holds for all images")
        names = [(path.removesuffix(".safetensors"), multiplier) for path, multiplier in adapters]
        self._tags = "".join(f"<lora:{name}:{multiplier}>" for name, multiplier in names)

    def _generate(self, latents: int, steps: int) -> list[float]:
        """Seconds between one step's end and the next."""
        marks: list[float] = []
        self._model.generate_image(
            prompt=PROMPT + self._tags,
            width=latents * 8,
            height=latents * 8,
            sample_steps=steps,
            sample_method="euler",
            cfg_scale=4.0,
            seed=1,
            progress_callback=lambda step, steps, seconds: marks.append(time.perf_counter()),
        )
        return np.diff(marks).tolist()

    def times(self, inputs: Mapping[str, np.ndarray], count: int) -> list[float]:
        """One row is asked for where the swap is looked for: whole images of one step then, for that is where it is."""
        rows, _, latents, _ = inputs["sample"].shape
        if rows > 1:
            return self._generate(latents, count + 1)[-count:]
        made = []
        for _ in range(count):
            start = time.perf_counter()
            self._generate(latents, 1)
            made.append(time.perf_counter() - start)
        return made

    def image(self, latents: int, steps: int) -> None:
        self._generate(latents, steps)


if __name__ == "__main__":
    serve(StableDiffusionCpp)
