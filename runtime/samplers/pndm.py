"""PNDM without Runge-Kutta steps, also known as PLMS: a linear multistep method on the predicted noise.

Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778: the
transfer part with the linear multistep part. The first step, as in the latent diffusion code, goes by the mean of the
noise at both of its ends.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step

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
            guess = there.latents(here.image(x, grain), grain)
            mixed = blend(0.5, grain, 0.5, denoise(guess, there).noise)
        else:
            mixed = np.tensordot(np.array(WEIGHTS[len(history)]), np.stack(history), axes=1)
        image = here.image(x, mixed)
        x = there.latents(image, mixed)
        yield Step(x, image)
