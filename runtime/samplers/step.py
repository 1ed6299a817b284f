"""What a sampler hands to its caller."""

from typing import NamedTuple

from lora_edge.arrays import FloatArray


class Step(NamedTuple):
    """The state after one step; both [rows, channels, height, width], float32 as `Plan.run` yields it.

    Attributes:
        latents: at the next level; after the last step, what the VAE decodes.
        denoised: the image as the step estimated it, for previews.
    """

    latents: FloatArray
    denoised: FloatArray
