"""What a whole image takes, component by component, for contestants that run graphs and bring no pipeline."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.contestants.base import inputs_of

Run = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def image(run: Run, model: Mapping[str, Any], latents: int, steps: int) -> None:
    """Encode two texts, step with guidance, decode; nothing is kept. The samples are noise throughout."""
    inputs = inputs_of(model, latents, 2)
    run("text_encoder", {"input_ids": np.ones((2, model["tokens"]), np.int64)})
    for _ in range(steps):
        run("unet", inputs)
    run("vae_decoder", {"latent_sample": inputs["sample"][:1]})
