"""Plans: names in any spelling, part of a ladder, guidance, and everything that is refused before the first step."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from lora_edge.errors import RequestError
from lora_edge.runtime import samplers
from lora_edge.runtime.denoise import guided
from lora_edge.runtime.noise import Noise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (1, 4, 4, 4)
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def model(x, timestep):
    return np.tanh(x + np.float32(timestep / 1000))


def test_a_plan_of_part_strength_begins_lower():
    whole, part = samplers.plan("euler", STABLE, 20), samplers.plan("euler", STABLE, 20, strength=0.5)
    assert part.ladder.levels == whole.ladder.levels[10:] and part.steps == 10
    unit, image = Noise(1).normal(SHAPE), Noise(2).normal(SHAPE)
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(10)
    at = scheduler.timesteps[10:11]
    noisy = scheduler.add_noise(torch.from_numpy(image), torch.from_numpy(unit), at)
    expected = scheduler.scale_model_input(noisy, at[0]).numpy()
    np.testing.assert_allclose(part.start(unit, image), expected, atol=1e-5)


def test_guidance_is_one_call_and_the_usual_formula():
    seen = []

    def doubled(x, timestep):
        seen.append((x.shape, timestep))
        return np.concatenate([model(x[:2], timestep), model(x[2:], timestep + 300)])

    x = Noise(5).normal((2, 4, 4, 4))
    mixed = guided(doubled, 7.5)(x, 100.0)
    assert seen == [((4, 4, 4, 4), 100.0)] and mixed.dtype == np.float32
    negative, positive = model(x, 100.0), model(x, 400.0)
    np.testing.assert_allclose(mixed, negative + 7.5 * (positive - negative), atol=1e-6)

    expected = rescale_noise_cfg(torch.from_numpy(mixed), torch.from_numpy(positive), guidance_rescale=0.7).numpy()
    np.testing.assert_allclose(guided(doubled, 7.5, rescale=0.7)(x, 100.0), expected, atol=1e-5)


def test_nothing_is_computed_ahead():
    asked = []
    plan, noise = samplers.plan("euler", STABLE, 20), Noise(1)
    steps = plan.run(lambda x, t: asked.append(t) or x, plan.start(noise.normal(SHAPE)), noise)
    next(steps)
    next(steps)
    steps.close()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("EULER", "euler"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpmpp-2m-karras", "dpmpp_2m_karras"),
        ("PLMS", "pndm"),
        ("UniPC", "unipc"),
        ("uni_pc", "unipc"),
    ],
)
def test_spellings(spelling, name):
    assert samplers.find(spelling) == name


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (("eulr", STABLE, 20), {}, "no sampler 'eulr'; did you mean euler"),
        (("zzz", STABLE, 20), {}, "no sampler 'zzz'; there are euler, euler_a"),
        (("euler", STABLE, 0), {}, "steps is 0"),
        (("euler", STABLE, 2.5), {}, "steps is 2.5; it must be a whole number"),
        (("euler", STABLE, 10**9), {}, "more than the 1000 of the schedule"),
        (("unipc", STABLE | {"timestep_spacing": "leading"}, 1000), {}, "do not fit a schedule of 1000 timesteps"),
        (("euler", STABLE, 20), {"strength": 0}, "strength is 0"),
        (("ddim", STABLE, 1001), {}, "1001 steps .* use fewer"),
        (("ddim", STABLE | {"steps_offset": 1}, 1000), {}, "steps_offset 1"),
        (("lcm", STABLE, 51), {}, "distilled on 50"),
        (("ddim", STABLE, 20), {"use_karras_sigmas": True}, "ddim has no setting use_karras_sigmas"),
        (("dpmpp_2m_karras", STABLE, 20), {"use_karras_sigmas": False}, "no setting use_karras_sigmas"),
        (("euler", STABLE | {"wobble": 1}, 20), {}, "unknown scheduler setting: wobble"),
        (("heun", STABLE, 20), {"rescale_betas_zero_snr": True}, "heun cannot start from pure noise"),
        (("pndm", STABLE, 20), {"rescale_betas_zero_snr": True}, "pndm cannot start from pure noise"),
        (
            ("ddim", STABLE, 20),
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "a model that predicts epsilon cannot start from pure noise",
        ),
    ],
)
def test_refusals(arguments, settings, says):
    with pytest.raises(RequestError, match=says):
        samplers.plan(*arguments, **settings)


def test_native():
    assert samplers.native({"_class_name": "PNDMScheduler"}) == "pndm"
    with pytest.raises(RequestError, match="no sampler does what KDPM2DiscreteScheduler does"):
        samplers.native({"_class_name": "KDPM2DiscreteScheduler"})
