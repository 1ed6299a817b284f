"""From what a model predicts to what a sampler needs: the image and the noise in a latent.

A model says one of three things about `x = alpha * image + sigma * noise`, and says it for the prompt and for the
negative prompt. Samplers know of neither.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from lora_edge.arrays import FloatArray, IntArray
from lora_edge.runtime.levels import Level, blend
from lora_edge.runtime.schedule import Schedule

Predict: TypeAlias = Callable[[FloatArray, float], FloatArray]
"""A model: latents [rows, channels, height, width] float32 and timestep -> prediction of the same shape."""


class Estimate(NamedTuple):
    """What a latent is taken to be made of; both [rows, channels, height, width] float32."""

    denoised: FloatArray
    noise: FloatArray


Denoise: TypeAlias = Callable[[FloatArray, Level], Estimate]


def _epsilon(x: FloatArray, prediction: FloatArray, level: Level) -> Estimate:
    """Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239: the noise."""
    return Estimate(level.image(x, prediction), prediction)


def _velocity(x: FloatArray, prediction: FloatArray, level: Level) -> Estimate:
    """Salimans and Ho, "Progressive Distillation", arXiv:2202.00512: alpha * noise - sigma * image."""
    return Estimate(blend(level.alpha, x, -level.sigma, prediction), blend(level.alpha, prediction, level.sigma, x))


def _sample(x: FloatArray, prediction: FloatArray, level: Level) -> Estimate:
    """The image."""
    return Estimate(prediction, level.noise(x, prediction))


ESTIMATES: Mapping[str, Callable[[FloatArray, FloatArray, Level], Estimate]] = {
    "epsilon": _epsilon,
    "v_prediction": _velocity,
    "sample": _sample,
}


def denoiser(predict: Predict, schedule: Schedule) -> Denoise:
    """A model as a sampler sees it: latents and level -> `Estimate`.

    The image is clipped where the schedule says so; the noise is what the model meant.
    """
    estimate = ESTIMATES[schedule.prediction_type]
    bound = schedule.clip_sample_range if schedule.clip_sample else float("inf")

    def denoise(x: FloatArray, level: Level) -> Estimate:
        image, noise = estimate(x, predict(x.astype(np.float32), level.timestep), level)
        return Estimate(image.clip(-bound, bound), noise)

    return denoise


def guided(
    model: Predict,
    guidance: float,
    rescale: float = 0.0,
    owners: IntArray | None = None,
    weights: FloatArray | None = None,
) -> Predict:
    """Classifier-free guidance, with one call of the model for all halves.

    Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598. The weight is that of Imagen
    (arXiv:2205.11487, equation 2), as everywhere in Stable Diffusion: 1 is the prompt alone. Several prompts of an
    image add up (Liu et al., "Compositional Visual Generation", arXiv:2206.01714, as AUTOMATIC1111's `AND`):
    negative + guidance * sum of weight * (prompt - negative).

    Args:
        model: takes [rows + prompts, channels, height, width], first the rows with their negative prompts, then one
            row for each prompt, and returns its predictions in that order.
        guidance: how far to go from the negative prompt to the prompt and beyond.
        rescale: 0 .. 1, how much of the contrast that guidance adds is taken back (Lin et al., arXiv:2305.08891,
            section 3.4); 0 takes none.
        owners: [prompts] int64, the row that each prompt belongs to; None is one each.
        weights: [prompts] float32, of each prompt; None is 1.

    Returns:
        A model of the single batch.
    """

    def predict(x: FloatArray, timestep: float) -> FloatArray:
        own = np.arange(len(x)) if owners is None else owners
        predicted = model(np.concatenate([x, x[own]]), timestep)
        negative, prompts = predicted[: len(x)], predicted[len(x) :]
        away = prompts - negative[own]
        change = np.zeros_like(negative)
        np.add.at(change, own, away if weights is None else away * weights[:, None, None, None])
        mixed = blend(1, negative, guidance, change)
        if rescale:
            contrast = _deviation(negative + change) / _deviation(mixed)
            mixed = blend(rescale, mixed * contrast, 1 - rescale, mixed)
        return mixed

    return predict


def _deviation(values: FloatArray) -> FloatArray:
    """Standard deviation of each row: [rows, 1, 1, 1]."""
    deviation: FloatArray = np.std(values, axis=tuple(range(1, values.ndim)), keepdims=True)
    return deviation
