"""Heun: an Euler step, then the same step again with the mean of the slopes at both ends.

Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364,
algorithm 1.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step

from lora_edge.arrays import FloatArray


def heun(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise; asks the model twice a step, and once in a step that ends without noise."""
    for here, there in pairwise(levels):
        image = denoise(x, here).denoised
        grain = (x - here.alpha * image) / here.sigma
        guess = there.alpha * image + there.sigma * grain
        if there.sigma > 0:
            image = denoise(guess, there).denoised
            slope = (grain + (guess - there.alpha * image) / there.sigma) / 2
            guess = there.alpha * (x / here.alpha + (there.ratio - here.ratio) * slope)
        x = guess
        yield Step(x, image)
