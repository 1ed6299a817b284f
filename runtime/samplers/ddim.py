"""DDIM: the deterministic member of the family, eta 0.

Song, Meng and Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502, equation 12.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step


def ddim(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise. The step is that of euler; the levels are not."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        x = there.latents(estimate.denoised, estimate.noise)
        yield Step(x, estimate.denoised)
