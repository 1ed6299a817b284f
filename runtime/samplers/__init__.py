"""Samplers: from noise to an image, one file per method.

A sampler is a plain generator function

    sampler(denoise, x, levels, noise) -> Iterator[Step]

- `denoise(x, level)` estimates image and noise in the latents (`denoise.Estimate`); what the model predicts, guidance
  and batching are hidden in it.
- `x`: latents [rows, channels, height, width] float64 at `levels[0]`, in the model's own coordinates:
  `x = alpha * image + sigma * noise`, alpha**2 + sigma**2 = 1. So a latent goes into the model as it is, whatever the
  sampler.
- `levels`: the rungs of the ladder (`levels.Level`), steps + 1 of them.
- `noise`: the stream (`noise.Noise`) that fresh noise comes from; samplers that add none leave it alone.

It yields a `Step(latents, denoised)` after each step, so progress, preview and cancelling belong to the caller:

    plan = samplers.plan("euler", scheduler_config, steps=20)
    noise = Noise(seed)
    x = plan.start(noise.normal([1, 4, 64, 64]))
    for step in plan.run(guided(model, 7.5), x, noise):
        preview(step.denoised)
    image = vae(step.latents)

Adding a sampler is one file and one line of `SAMPLERS`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import RequestError
from lora_edge.runtime.denoise import Denoise, Predict, denoiser
from lora_edge.runtime.levels import Ladder, Level, Levels, blend, distilled, indexed, solved, spread
from lora_edge.runtime.noise import Noise
from lora_edge.runtime.samplers.ddim import ddim
from lora_edge.runtime.samplers.dpmpp_2m import dpmpp_2m
from lora_edge.runtime.samplers.euler import euler
from lora_edge.runtime.samplers.euler_ancestral import euler_ancestral
from lora_edge.runtime.samplers.heun import heun
from lora_edge.runtime.samplers.lcm import lcm
from lora_edge.runtime.samplers.pndm import pndm
from lora_edge.runtime.samplers.step import Step
from lora_edge.runtime.samplers.unipc import unipc
from lora_edge.runtime.schedule import Schedule

__all__ = ["ALIASES", "NATIVE", "SAMPLERS", "Plan", "Sampler", "Step", "find", "native", "plan"]


@dataclass(frozen=True)
class Sampler:
    """One method and the facts about it.

    Attributes:
        title: its name in A1111's web UI, which image metadata carries.
        run: the generator function.
        levels: the tradition its noise levels follow.
        uses: settings of `Schedule` that it heeds besides those every sampler does (`COMMON`).
        defaults: settings that a configuration without them means, as in the diffusers scheduler of that name.
        fixed: settings that are part of its name.
        zero_snr: whether it can start from pure noise.
    """

    title: str
    run: Callable[[Denoise, FloatArray, Sequence[Level], Noise], Iterator[Step]]
    levels: Levels
    uses: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    zero_snr: bool = True


COMMON = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
    | {"prediction_type", "rescale_betas_zero_snr"}
)
SPACED = frozenset({"timestep_spacing", "steps_offset"})
CLIPS = frozenset({"clip_sample", "clip_sample_range"})
SIGMAS = SPACED | {"use_karras_sigmas", "final_sigmas_type"}
LINSPACE = {"timestep_spacing": "linspace"}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
KARRAS = {"use_karras_sigmas": True}

SAMPLERS: Mapping[str, Sampler] = {
    "euler": Sampler("Euler", euler, spread, SIGMAS, LINSPACE),
    "euler_a": Sampler("Euler a", euler_ancestral, spread, SPACED, LINSPACE),
    "heun": Sampler("Heun", heun, spread, SPACED | CLIPS | {"use_karras_sigmas"}, LINSPACE | STABLE, zero_snr=False),
    "ddim": Sampler("DDIM", ddim, indexed, SPACED | CLIPS | {"set_alpha_to_one"}),
    "pndm": Sampler("PLMS", pndm, indexed, SPACED | {"set_alpha_to_one"}, {"set_alpha_to_one": False}, zero_snr=False),
    "dpmpp_2m": Sampler("DPM++ 2M", dpmpp_2m, solved, SIGMAS, LINSPACE),
    "dpmpp_2m_karras": Sampler("DPM++ 2M Karras", dpmpp_2m, solved, SIGMAS, LINSPACE, KARRAS),
    "unipc": Sampler("UniPC", unipc, solved, SIGMAS, LINSPACE),
    "lcm": Sampler(
        "LCM", lcm, distilled, CLIPS | {"original_inference_steps"}, STABLE | {"beta_schedule": "scaled_linear"}
    ),
}

# Other spellings; titles, case, spaces and punctuation need no entry.
ALIASES: Mapping[str, str] = {"euler ancestral": "euler_a"}

# The sampler that does what a diffusers scheduler of this class does.
NATIVE: Mapping[str, str] = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
}


@dataclass(frozen=True)
class Plan:
    """A run, settled before its first step: nothing is refused after this.

    Attributes:
        name: the sampler's name in `SAMPLERS`.
        schedule: the model's noise schedule.
        ladder: the noise levels; `levels` of them are gone down.
    """

    name: str
    schedule: Schedule
    ladder: Ladder

    @property
    def title(self) -> str:
        """The sampler's name as image metadata has it."""
        return SAMPLERS[self.name].title

    @property
    def steps(self) -> int:
        """How often `run` yields."""
        return len(self.ladder.levels) - 1

    def start(self, unit: FloatArray, image: FloatArray | None = None) -> FloatArray:
        """First latents.

        Args:
            unit: [rows, channels, height, width] float32 standard normal numbers.
            image: latents of an image to start from, in the same shape, for plans of less than full strength.
        """
        if image is None:
            return blend(self.ladder.start, unit, 0, unit)
        return self.ladder.levels[0].latents(image, unit)

    def run(self, predict: Predict, x: FloatArray, noise: Noise) -> Iterator[Step]:
        """Goes down the ladder.

        Args:
            predict: the model: latents [rows, channels, height, width] float32 and timestep (a Python float, maybe
                fractional) -> prediction of the same shape and dtype. `denoise.guided` makes one that has guidance.
            x: what `start` gave.
            noise: the stream that the first noise came from.

        Yields:
            A `Step` after each step; nothing is computed ahead of the caller.
        """
        # Latents are small beside the model, so what a sampler computes is exact to more digits than they have.
        exact: Any = x.astype(np.float64)
        for step in SAMPLERS[self.name].run(denoiser(predict, self.schedule), exact, self.ladder.levels, noise):
            yield Step(step.latents.astype(np.float32), step.denoised.astype(np.float32))


def plan(name: str, config: Mapping[str, Any], steps: int, strength: float = 1.0, **overrides: Any) -> Plan:
    """Settles a run.

    Args:
        name: a sampler, in any usual spelling ("euler_a", "Euler a", "DPM++ 2M Karras").
        config: contents of a diffusers `scheduler_config.json`, of whatever scheduler.
        steps: how many, at least 1.
        strength: 0 .. 1, how much of the ladder is gone down: 1 from noise to image, less from an image with noise.
        overrides: attributes of `Schedule` in place of the configuration's.

    Raises:
        RequestError: the name is unknown, the steps do not fit the schedule, the sampler does not heed an override, or
            cannot start from this schedule's noise.
    """
    name = find(name)
    sampler = SAMPLERS[name]
    _refuse_overrides(name, overrides)
    if not isinstance(steps, int) or steps < 1:
        raise RequestError(f"steps is {steps}; it must be a whole number of at least 1")
    if not 0 < strength <= 1:
        raise RequestError(f"strength is {strength}; it must be above 0 and at most 1")
    read = Schedule.of({**sampler.defaults, **config}, **{**overrides, **sampler.fixed})
    schedule = read.only(COMMON | sampler.uses)
    if schedule.rescale_betas_zero_snr and not sampler.zero_snr:
        raise RequestError(f"{name} cannot start from pure noise (rescale_betas_zero_snr): use euler, ddim or dpmpp_2m")
    if steps > schedule.num_train_timesteps:
        raise RequestError(f"{steps} steps are more than the {schedule.num_train_timesteps} of the schedule: use fewer")
    ladder = sampler.levels(schedule, steps)
    if ladder.levels[0].alpha == 0 and schedule.prediction_type == "epsilon":
        raise RequestError(
            f"a model that predicts epsilon cannot start from pure noise with {name}: use euler or dpmpp_2m"
        )
    return Plan(name, schedule, ladder.lower(max(1, int(steps * strength))))


def find(name: str) -> str:
    """The name in `SAMPLERS` that a spelling means.

    Raises:
        RequestError: there is none; near matches are named.
    """
    spelled = _SPELLINGS.get(_plain(name))
    if spelled is None:
        near = get_close_matches(_plain(name), _SPELLINGS, n=3, cutoff=0.5)
        names = ", ".join(dict.fromkeys(_SPELLINGS[match] for match in near))
        raise RequestError(
            f"no sampler {name!r}; " + (f"did you mean {names}?" if near else f"there are {', '.join(SAMPLERS)}")
        )
    return spelled


def native(config: Mapping[str, Any]) -> str:
    """The sampler that a diffusers scheduler configuration was written for.

    Raises:
        RequestError: it was written for a scheduler that is not here.
    """
    scheduler = str(config.get("_class_name"))
    if scheduler not in NATIVE:
        raise RequestError(f"no sampler does what {scheduler} does: name one of {', '.join(SAMPLERS)}")
    return NATIVE[scheduler]


def _refuse_overrides(name: str, overrides: Mapping[str, Any]) -> None:
    sampler = SAMPLERS[name]
    heeded = (COMMON | sampler.uses) - sampler.fixed.keys()
    idle = [key for key in overrides if key not in heeded]
    if idle:
        raise RequestError(f"{name} has no setting {', '.join(idle)}; it heeds {', '.join(sorted(heeded))}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


_SPELLINGS = {
    _plain(spelling): name
    for spelling, name in [
        *((name, name) for name in SAMPLERS),
        *((sampler.title, name) for name, sampler in SAMPLERS.items()),
        *ALIASES.items(),
    ]
}
