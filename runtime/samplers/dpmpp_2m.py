"""DPM-Solver++(2M): a second-order multistep solver for the image, in the time log(alpha / sigma).

Lu, Zhou, Bao, Chen, Li and Zhu, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
arXiv:2211.01095, algorithm 2.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step

# With fewer steps than this the last one is first order even where it ends with noise, for stability.
FEW = 15


def dpmpp_2m(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise."""
    steps = len(levels) - 1
    before: tuple[FloatArray, float] | None = None
    for index, (here, there) in enumerate(pairwise(levels)):
        image = denoise(x, here).denoised
        width = there.log_snr - here.log_snr
        target = image
        last = index == steps - 1
        if before is not None and not (last and (there.sigma == 0 or steps < FEW)):
            past, past_width = before
            lean = width / past_width / 2
            target = blend(1 + lean, image, -lean, past)
        x = blend(there.sigma / here.sigma, x, there.alpha - there.sigma / here.ratio, target)
        before = image, width
        yield Step(x, image)
