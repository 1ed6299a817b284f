"""The walk from a checked request to images: encode, go down the noise levels, decode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lora_edge.arrays import FloatArray
from lora_edge.errors import Cancelled
from lora_edge.runtime.components import Components
from lora_edge.runtime.conditioning import encode
from lora_edge.runtime.denoise import Predict, guided
from lora_edge.runtime.image import to_images
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.request import Request, Size
from lora_edge.runtime.swap import Swap, differs_by_row
from lora_edge.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Progress:
    """What `on_step` is given after each step.

    Attributes:
        step: 1 .. steps.
        steps: how many there are.
        latents: [rows, channels, height, width] float32.
        denoised: the same, as the step estimated the finished image.
        decode: latents -> images.
    """

    step: int
    steps: int
    latents: FloatArray
    denoised: FloatArray
    decode: Callable[[FloatArray], list[Image.Image]]

    def preview(self) -> list[Image.Image]:
        """The images as they would be now; costs one run of the VAE decoder."""
        return self.decode(self.denoised)


OnStep = Callable[[Progress], object]
"""Hears of each step; returning False cancels the request."""


@dataclass(frozen=True)
class Painter:
    """What making images takes, read once.

    Attributes:
        channels: of the latents.
        vae: config of the VAE.
        scheduler: scheduler_config.json.
    """

    components: Components
    swap: Swap
    tokenizer: Tokenizer
    size: Size
    channels: int
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def paint(self, request: Request, on_step: OnStep | None = None) -> list[Image.Image]:
        """Make the images of a request.

        Raises:
            Cancelled: `on_step` returned False.
            GraphFailed: the numbers stopped being finite.
        """
        noise = Noise(request.seeds)
        shape = (
            request.rows,
            self.channels,
            request.height // self.size.factor,
            request.width // self.size.factor,
        )
        latents = request.plan.start(noise.normal(shape))
        for index, step in enumerate(request.plan.run(self._model(request), latents, noise), 1):
            latents = step.latents
            if on_step is not None:
                progress = Progress(index, request.plan.steps, step.latents, step.denoised, self.decode)
                if on_step(progress) is False:
                    raise Cancelled(f"cancelled after step {index} of {request.plan.steps}")
        return self.decode(latents)

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """Latents -> images.

        Raises:
            GraphFailed: latents or pixels are not finite.
        """
        scaled = latents / self.vae.get("scaling_factor", 0.18215) + (self.vae.get("shift_factor") or 0.0)
        pixels = self.components.run("vae_decoder", {"latent_sample": scaled}, {})["sample"]
        return to_images(pixels)

    def _model(self, request: Request) -> Predict:
        """Latents and timestep -> prediction, with prompt, guidance and adapters inside."""
        texts = [request.negative, request.text] if request.guided else [request.text]
        # Images share their texts, unless an adapter of the text encoder acts on each image in its own strength.
        alike = not any(differs_by_row(strength) for _, strength in request.adapters)
        copies = 1 if alike else request.rows
        changes = self.swap.feeds("text_encoder", request.adapters, request.rows, repeat=len(texts))
        states = encode(self.components, self.tokenizer, [text for text in texts for _ in range(copies)], changes)
        context = np.repeat(states, request.rows // copies, axis=0)
        feeds = self.swap.feeds("unet", request.adapters, request.rows, repeat=len(texts))

        def model(sample: FloatArray, timestep: float) -> FloatArray:
            inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": context}
            return self.components.run("unet", inputs, feeds)["out_sample"]

        return guided(model, request.guidance) if request.guided else model
