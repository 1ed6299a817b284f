"""Euler with fresh noise: each step goes lower than the next level and comes back up with new noise.

Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364,
as ancestral sampling (Song et al., "Score-Based Generative Modeling through SDEs", arXiv:2011.13456, appendix F).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step


def euler_ancestral(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws noise once a step, except for the last, which ends without any."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        # The noise of the next level, split into what is kept of the old and what is new: down**2 + up**2 = ratio**2.
        down = there.ratio**2 / here.ratio
        up = (there.ratio**2 - down**2) ** 0.5
        x = blend(there.alpha, estimate.denoised, there.alpha * down, estimate.noise)
        if up > 0:
            x = blend(1, x, there.alpha * up, noise.normal(x.shape))
        yield Step(x, estimate.denoised)
