"""PNDM without Runge-Kutta steps, also known as PLMS: a linear multistep method on the predicted noise.

Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778, equations 11 and
12; the first step as in the latent diffusion code, by the mean of the noise at both ends (equation 22 of the appendix).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step

from lora_edge.arrays import FloatArray

# Adams-Bashforth weights by number of known predictions, the newest first.
WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise; asks the model twice in the first step, unless it is the only one."""
    history: list[FloatArray] = []
    for index, (here, there) in enumerate(pairwise(levels)):
        grain = denoise(x, here).noise
        history = [grain, *history][: len(WEIGHTS)]
        if index == 0 and len(levels) > 2:
            mixed = (grain + denoise(_transfer(x, grain, here, there), there).noise) / 2
        else:
            weighted = (weight * past for weight, past in zip(WEIGHTS[len(history)], history, strict=True))
            mixed = sum(weighted, start=np.zeros_like(x))
        image = _image(x, mixed, here)
        x = _transfer(x, mixed, here, there)
        yield Step(x, image)


def _image(x: FloatArray, noise: FloatArray, level: Level) -> FloatArray:
    return (x - level.sigma * noise) / level.alpha


def _transfer(x: FloatArray, noise: FloatArray, here: Level, there: Level) -> FloatArray:
    """Equation 11: from one level to another along given noise."""
    return there.alpha * _image(x, noise, here) + there.sigma * noise
