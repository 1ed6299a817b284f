"""LCM: the model jumps to the image in one go; each further step adds noise and jumps again.

Luo, Tan, Huang, Li and Zhao, "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
arXiv:2310.04378: multistep sampling, with the skip connection that makes the model exact at timestep 0.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def lcm(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws noise once a step, except for the last."""
    for here, there in pairwise(levels):
        time = here.timestep * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2)
        out = time / (time**2 + SIGMA_DATA**2) ** 0.5
        image = blend(out, denoise(x, here).denoised, skip, x)
        x = there.latents(image, noise.normal(x.shape)) if there.sigma > 0 else image
        yield Step(x, image)
