"""The walk from a checked request to images: encode, go down the noise levels, decode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lora_edge.arrays import FloatArray
from lora_edge.bundle import Bundle
from lora_edge.errors import Cancelled
from lora_edge.runtime.components import Components
from lora_edge.runtime.conditioning import TextModel
from lora_edge.runtime.denoise import Predict, guided
from lora_edge.runtime.image import to_images
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.request import Request
from lora_edge.runtime.size import Size
from lora_edge.runtime.swap import Swap
from lora_edge.runtime.textcache import TextCache
from lora_edge.runtime.tiles import Tiling


@dataclass(frozen=True)
class Progress:
    """What `on_step` is given after each step.

    Attributes:
        step: 1 .. steps.
        steps: how many there are.
        images: indices of those that took the step; some of the batch where others run apart.
        latents: [rows, channels, height, width] float32.
        denoised: the same, as the step estimated the finished image.
        decode: latents -> images.
    """

    step: int
    steps: int
    images: tuple[int, ...]
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
        texts: what the text encoder made of texts before.
        tiling: of large images, None where they are decoded at once.
    """

    bundle: Bundle
    components: Components
    swap: Swap
    size: Size
    channels: int
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    texts: TextCache
    tiling: Tiling | None = None

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
        clock = _Clock(request.plan.steps)
        for step in request.plan.run(self._model(request, clock), latents, noise):
            latents = step.latents
            if on_step is not None:
                done = Progress(clock.step, clock.steps, request.images, step.latents, step.denoised, self.decode)
                if on_step(done) is False:
                    raise Cancelled(f"cancelled after step {clock.step} of {clock.steps}")
            clock.step += 1
        return self.decode(latents)

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """Latents -> images.

        Raises:
            GraphFailed: latents or pixels are not finite.
        """
        scaled = latents / self.vae.get("scaling_factor", 0.18215) + (self.vae.get("shift_factor") or 0.0)
        return to_images(self.tiling.decode(self._pixels, scaled) if self.tiling else self._pixels(scaled))

    def _pixels(self, scaled: FloatArray) -> FloatArray:
        return self.components.run("vae_decoder", {"latent_sample": scaled}, {})["sample"]

    def _model(self, request: Request, clock: "_Clock") -> Predict:
        """Latents and timestep -> prediction, with prompts, guidance and adapters inside."""
        assert request.words is not None, "resolved"
        text = TextModel(self.bundle, self.components, self.swap, request.words, request.clip_skip, self.texts)
        conditions = {scene.until: text.condition(scene, request.guided) for scene in request.story}

        def model(sample: FloatArray, timestep: float) -> FloatArray:
            scene = request.scene(clock.step)
            now = conditions[scene.until]
            feeds = self.swap.feeds(
                "unet", scene.adapters, rows=request.rows, owners=now.owners, step=clock.step - 1, steps=clock.steps
            )

            def unet(rows: FloatArray, timestep: float) -> FloatArray:
                inputs = {"sample": rows, "timestep": timestep, "encoder_hidden_states": now.context}
                return self.components.run("unet", inputs, feeds)["out_sample"]

            if not request.guided:
                return unet(sample, timestep)
            prompts = now.owners[request.rows :]
            return guided(unet, max(request.guidance, 1.0), 0.0, prompts, now.weights)(sample, timestep)

        return model


@dataclass
class _Clock:
    """Which step is being taken, counted from 1; samplers do not say it to the model."""

    steps: int
    step: int = 1
