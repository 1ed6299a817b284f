"""UniPC of order two, B2(h), for the image: a predictor whose result the next model call corrects for free.

Zhao, Bai, Rao, Zhou and Lu, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
arXiv:2302.04867, in multistep form; the first and the last step are of order one.
"""

from collections.abc import Iterator, Sequence
from math import expm1
from typing import NamedTuple

from lora_edge.arrays import FloatArray
from lora_edge.runtime.denoise import Denoise
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.step import Step


class Known(NamedTuple):
    """A level where the image has been estimated."""

    level: Level
    image: FloatArray


def unipc(denoise: Denoise, x: FloatArray, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Draws no noise."""
    steps = len(levels) - 1
    history: list[Known] = []
    start = x
    for index, there in enumerate(levels[1:]):
        here = Known(levels[index], denoise(x, levels[index]).denoised)
        if history:
            x = _advance(start, history, here.level, _corrector(history, here))
        start = x
        # Two estimates are kept; the last step leans on one.
        history = [here, *history][: 2 if index < steps - 1 else 1]
        x = _advance(start, history, there, _predictor(history, there))
        yield Step(x, here.image)


def _advance(start: FloatArray, history: list[Known], there: Level, bend: FloatArray | float) -> FloatArray:
    """What predictor and corrector share: from the newest known level to `there`, the image bent on the way."""
    here, image = history[0]
    return blend(there.sigma / here.sigma, start, there.alpha - there.sigma / here.ratio, image + bend)


def _slopes(history: list[Known], width: float) -> list[tuple[float, FloatArray]]:
    """For each older known level, where it lies in units of the step (below 0) and the slope of the image to it."""
    (level, image), *older = history
    places = [(past.level.log_snr - level.log_snr) / width for past in older]
    return [(place, (past.image - image) / place) for place, past in zip(places, older, strict=True)]


def _predictor(history: list[Known], there: Level) -> FloatArray | float:
    """UniP: half the slope to the level before, exact for B2 at order two."""
    width = there.log_snr - history[0].level.log_snr
    slopes = _slopes(history, width)
    return slopes[0][1] * 0.5 if slopes else 0.0


def _corrector(history: list[Known], here: Known) -> FloatArray | float:
    """UniC: the estimate at the end of the step joins in, weighted by the order conditions."""
    width = here.level.log_snr - history[0].level.log_snr
    change = here.image - history[0].image
    slopes = _slopes(history, width)
    if not slopes:
        return change * 0.5
    ((place, slope),) = slopes
    first, second = _moments(-width)
    share = (first - second) / (1 - place)
    return blend(share, slope, first - share, change)


def _moments(h: float) -> tuple[float, float]:
    """Right-hand sides of the order conditions: n! phi_(n+1)(h) h / (exp(h) - 1) for n = 1, 2."""
    scale = expm1(h)
    phi = scale / h - 1
    return phi / scale, 2 * (phi / h - 0.5) / scale
