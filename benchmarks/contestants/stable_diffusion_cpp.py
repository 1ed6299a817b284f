"""stable-diffusion.cpp by its Python package: adapters stand in the prompt and are merged into the weights.

It has no call for the UNet alone and none for a swap: a step is what lies between two calls of `progress_callback`, two
UNet evaluations with guidance. Every call of `generate_image` reads the adapters of its prompt and merges them, also
where they are those of the call before (its log says so), so what a change takes is what the image takes longer than
one without adapters.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from stable_diffusion_cpp import StableDiffusion

from benchmarks.contestants.base import PROMPT, Cannot, Contestant, serve

BARE = 4  # images without adapters, measured once; the first of them may take a merged adapter out


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
        self._bare: dict[int, float] = {}  # latents -> seconds of an image of one step without adapters

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
        """One row is asked for where a change is looked for: a whole image, then what one without adapters takes."""
        rows, _, latents, _ = inputs["sample"].shape
        if rows > 1:
            return self._generate(latents, count + 1)[-count:]
        if latents not in self._bare:
            wanted, self._tags = self._tags, ""
            self._bare[latents] = statistics.median(self._whole(latents) for _ in range(1 + BARE))
            self._tags = wanted
        return [self._whole(latents), *[self._bare[latents]] * (count - 1)]

    def _whole(self, latents: int) -> float:
        """Seconds of an image of one step."""
        start = time.perf_counter()
        self._generate(latents, 1)
        return time.perf_counter() - start

    def image(self, latents: int, steps: int) -> None:
        self._generate(latents, steps)


if __name__ == "__main__":
    serve(StableDiffusionCpp)
