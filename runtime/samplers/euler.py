"""Euler: one straight step along the probability flow.

Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364,
algorithm 1 without its second-order correction.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step


def euler(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise. In the model's own coordinates a step is: same image, same noise, the next level's weights."""
    for here, there in pairwise(levels):
        estimate = denoise(x, here)
        x = there.latents(estimate.denoised, estimate.noise)
        yield Step(x, estimate.denoised)
