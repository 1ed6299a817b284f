"""Which noise levels a run visits, in four traditions.

A run of n steps goes down a ladder of n + 1 levels; the model is asked at all of them but the last. The traditions
differ in where the rungs are and are kept apart because images depend on them: `spread` is k-diffusion's (fractional
timesteps), `indexed` that of ddim and pndm (whole timesteps, the last rung outside the training schedule), `solved`
that of the multistep solvers (one rung more, the lowest left out), `distilled` that of latent consistency models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias, cast

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import RequestError
from lora_edge.runtime.schedule import Doubles, Schedule


def blend(a: float, x: FloatArray, b: float, y: FloatArray) -> FloatArray:
    """a * x + b * y in the precision of x and y."""
    # The precision of arrays decides, not that of Python numbers; numpy's type stubs say otherwise.
    return cast(FloatArray, a * x + b * y)


@dataclass(frozen=True)
class Level:
    """One rung: latents here are `alpha * image + sigma * noise`.

    Attributes:
        timestep: what the model is told, in training steps, maybe fractional; -1 on the last rung of a ladder, where
            the model is not asked.
        alpha, sigma: weights of image and noise.
    """

    timestep: float
    alpha: float
    sigma: float

    def latents(self, image: FloatArray, noise: FloatArray) -> FloatArray:
        """What image and noise make here."""
        return blend(self.alpha, image, self.sigma, noise)

    def image(self, latents: FloatArray, noise: FloatArray) -> FloatArray:
        """What is left of latents without that noise."""
        return blend(1 / self.alpha, latents, -self.sigma / self.alpha, noise)

    def noise(self, latents: FloatArray, image: FloatArray) -> FloatArray:
        """What is left of latents without that image."""
        return blend(1 / self.sigma, latents, -self.alpha / self.sigma, image)

    @property
    def ratio(self) -> float:
        """Noise to signal: the sigma of k-diffusion."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), the lambda of the DPM-Solver papers; infinite without noise."""
        return float("inf") if self.sigma == 0 else float(np.log(self.alpha / self.sigma))


@dataclass(frozen=True)
class Ladder:
    """The levels of a run.

    Attributes:
        levels: steps + 1 of them, from noise to image.
        start: what unit noise is multiplied by to be a latent at the first level.
    """

    levels: tuple[Level, ...]
    start: float = 1.0

    def lower(self, steps: int) -> "Ladder":
        """The last steps of this ladder."""
        return Ladder(self.levels[-steps - 1 :], self.start)


Levels: TypeAlias = Callable[[Schedule, int], Ladder]


def spread(schedule: Schedule, steps: int) -> Ladder:
    """k-diffusion's levels: euler, euler_a, heun."""
    timesteps = _SPACINGS[schedule.timestep_spacing](schedule, steps)
    sigmas = _sigmas_at(schedule, timesteps)
    if schedule.use_karras_sigmas:
        sigmas = _karras(sigmas[0], sigmas[-1], steps)
        timesteps = _timesteps_at(schedule, sigmas)
    # This tradition ends with image + sigma * noise, the image unscaled.
    last = Level(-1.0, 1.0, _FINAL_SIGMA[schedule.final_sigmas_type](schedule))
    levels = (*_from_sigmas(timesteps, sigmas), last)
    # Leading spacing does not begin at the noisiest level, so its first latent is as strong as noise plus image.
    return _checked(Ladder(levels, 1.0 if schedule.timestep_spacing == "leading" else levels[0].sigma), schedule)


def indexed(schedule: Schedule, steps: int) -> Ladder:
    """The levels of ddim and pndm."""
    timesteps = _SPACINGS[schedule.timestep_spacing](schedule, steps).round()
    final = 1.0 if schedule.set_alpha_to_one else float(schedule.alpha_bars[0])
    return _checked(Ladder(_from_alpha_bars(schedule, timesteps, final)), schedule)


def solved(schedule: Schedule, steps: int) -> Ladder:
    """The levels of multistep solvers: dpmpp_2m, unipc."""
    rungs = steps if schedule.timestep_spacing == "trailing" else steps + 1
    timesteps = _SPACINGS[schedule.timestep_spacing](schedule, rungs).round()[:steps]
    sigmas = _sigmas_at(schedule, timesteps)
    if schedule.use_karras_sigmas:
        sigmas = _karras(schedule.sigmas[-1], schedule.sigmas[0], steps)
        timesteps = _timesteps_at(schedule, sigmas).round()
    final = np.array([_FINAL_SIGMA[schedule.final_sigmas_type](schedule)])
    return _checked(Ladder(_from_sigmas(timesteps, sigmas) + _from_sigmas(np.array([-1.0]), final)), schedule)


def distilled(schedule: Schedule, steps: int) -> Ladder:
    """The levels of latent consistency models: some of those the model was distilled on."""
    origin = schedule.original_inference_steps
    if steps > origin:
        raise RequestError(f"{steps} steps are too many: this model was distilled on {origin}")
    stride = schedule.num_train_timesteps // origin
    numbers = origin - np.floor(np.linspace(0, origin, steps, endpoint=False))
    return _checked(Ladder(_from_alpha_bars(schedule, numbers * stride - 1, 1.0)), schedule)


def _linspace(schedule: Schedule, rungs: int) -> Doubles:
    return np.linspace(schedule.num_train_timesteps - 1, 0, rungs).astype(np.float64)


def _leading(schedule: Schedule, rungs: int) -> Doubles:
    stride = schedule.num_train_timesteps // rungs
    return np.arange(rungs - 1, -1, -1, dtype=np.float64) * stride + schedule.steps_offset


def _trailing(schedule: Schedule, rungs: int) -> Doubles:
    length = schedule.num_train_timesteps
    return np.round(length - np.arange(rungs, dtype=np.float64) * (length / rungs)) - 1


_SPACINGS: Mapping[str, Callable[[Schedule, int], Doubles]] = {
    "linspace": _linspace,
    "leading": _leading,
    "trailing": _trailing,
}


def _karras(largest: float, smallest: float, steps: int, rho: float = 7.0) -> Doubles:
    """Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, eq. 5."""
    ramp = np.linspace(0, 1, steps)
    sigmas: Doubles = (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    return sigmas


def _sigmas_at(schedule: Schedule, timesteps: Doubles) -> Doubles:
    return np.interp(timesteps, np.arange(len(schedule.sigmas)), schedule.sigmas)


def _timesteps_at(schedule: Schedule, sigmas: Doubles) -> Doubles:
    """The timesteps, fractional, at which the model met this noise; between two of them log sigma is linear."""
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), np.arange(len(schedule.sigmas)))


_FINAL_SIGMA: Mapping[str, Callable[[Schedule], float]] = {
    "zero": lambda schedule: 0.0,
    "sigma_min": lambda schedule: float(schedule.sigmas[0]),
}


def _from_sigmas(timesteps: Doubles, sigmas: Doubles) -> tuple[Level, ...]:
    alphas = 1 / np.sqrt(sigmas**2 + 1)
    return tuple(map(_level, timesteps, alphas, sigmas * alphas))


def _from_alpha_bars(schedule: Schedule, timesteps: Doubles, final: float) -> tuple[Level, ...]:
    inside = timesteps.astype(np.int64).clip(0, schedule.num_train_timesteps - 1)
    alpha_bars = np.append(schedule.alpha_bars[inside], final)
    return tuple(map(_level, np.append(timesteps, -1), np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars)))


def _level(timestep: float, alpha: float, sigma: float) -> Level:
    # Plain Python numbers leave the precision of a blend to its arrays; numpy's scalars would not.
    return Level(float(np.float32(timestep)), float(alpha), float(sigma))


def _checked(ladder: Ladder, schedule: Schedule) -> Ladder:
    asked = ladder.levels[:-1]
    length = schedule.num_train_timesteps
    if not all(0 <= level.timestep <= length - 1 for level in asked) or not all(
        above.sigma > below.sigma for above, below in pairwise(asked)
    ):
        raise RequestError(
            f"{len(asked)} steps with {schedule.timestep_spacing} spacing do not fit a schedule of {length} timesteps "
            f"(steps_offset {schedule.steps_offset}): use fewer"
        )
    return ladder
