"""Every sampler walks the trajectory of the diffusers scheduler of its name: it asks the model at the same timesteps,
with the same latents, and ends in the same place.

The model is a fixed smooth function of latents and timestep; what is compared is what it is asked, call by call, and
what comes out. Differences are relative to the largest latent of the diffusers run, which with zero terminal SNR and
sigma-scaled latents is in the thousands.

Where diffusers departs from the papers, or from itself, the samplers follow the paper:

- ddim and pndm in diffusers step by `num_train_timesteps // steps`, whatever the next timestep is: wrong for linspace,
  and for trailing where the steps do not divide the schedule. `Stride` tells them the true distance.
- pndm in diffusers mixes velocities of different levels before it turns the mixture into noise; the paper mixes noise.
- With one step, linspace in diffusers begins at timestep 0, where there is nothing to denoise; k-diffusion's begins at
  the last one, and so do we.
- unipc in diffusers ends a Karras run with `final_sigmas_type: sigma_min` at the last sigma it has been at, so one
  step goes nowhere; ours ends at the first sigma of the training. (With more steps the two are the same.)
- euler_a, heun and pndm in diffusers lack some settings; ours refuse them, or are tested against another prediction
  type.
"""

from itertools import product

import diffusers
import numpy as np
import pytest
import torch

from lora_edge.runtime import samplers
from lora_edge.runtime.noise import Noise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
diffusers.utils.logging.set_verbosity_error()

SHAPE = (1, 4, 4, 4)
STEPS = (1, 2, 3, 16, 20)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {name: scheduler for scheduler, name in samplers.NATIVE.items()}
SCHEDULERS["dpmpp_2m_karras"] = SCHEDULERS["dpmpp_2m"]
INDEXED = ("ddim", "pndm")

ZERO_SNR = {"rescale_betas_zero_snr": (False, True)}
ENDS = {"final_sigmas_type": ("zero", "sigma_min")}
KARRAS = {"use_karras_sigmas": (False, True)}
CLIP = {"clip_sample": (False, True)}
OPTIONS = {
    "euler": ZERO_SNR | ENDS | KARRAS,
    "euler_a": ZERO_SNR,
    "heun": KARRAS | CLIP,
    "ddim": ZERO_SNR | CLIP | {"set_alpha_to_one": (False, True)},
    "pndm": {"set_alpha_to_one": (False, True), "skip_prk_steps": (True,)},
    "dpmpp_2m": ZERO_SNR | ENDS,
    "dpmpp_2m_karras": ZERO_SNR | ENDS | {"use_karras_sigmas": (True,)},
    "unipc": ZERO_SNR | ENDS | KARRAS,
    "lcm": ZERO_SNR | CLIP,
}
NOT_IN_DIFFUSERS = {("euler_a", "sample"), ("pndm", "sample"), ("pndm", "v_prediction")}
DRAWS = ("euler_a", "lcm")

MIX = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) / 3


def model(x, timestep):
    """Smooth in both, of the size of its input, and about as far from linear as a network."""
    mixed = np.einsum("cd,bdhw->bchw", MIX, x) * np.cos(timestep / 500)
    return (np.tanh(mixed + 0.3 * np.sin(timestep / 200)) + 0.5 * x * timestep / 1000).astype(np.float32)


class Stride:
    """Stands in for `num_inference_steps` where diffusers divides by it, so that the quotient is the true distance."""

    def __init__(self, distance):
        self.distance = distance

    def __rfloordiv__(self, _):
        return self.distance


def theirs(name, config, steps, predict=model):
    """-> result, [(timestep, model input)], largest latent.

    Schedulers that draw noise draw it in the type of their latents, float32. The others are given float64: in float32
    heun's second slope, from full noise to sigma 0.03 at once, divides rounding errors by 0.03, and diffusers is 1.3e-5
    off itself.
    """
    scheduler = getattr(diffusers, SCHEDULERS[name])(**config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else diffusers starts at the second of two equal timesteps
    generator = torch.Generator().manual_seed(7)
    dtype = torch.float32 if name in DRAWS else torch.float64
    draws = {"generator": generator} if name in DRAWS else {}
    x = torch.randn(SHAPE, generator=generator).to(dtype) * scheduler.init_noise_sigma
    calls, largest = [], float(x.abs().max())
    distinct = sorted({int(timestep) for timestep in scheduler.timesteps}, reverse=True)
    for timestep in scheduler.timesteps:
        if name in INDEXED:
            below = [other for other in distinct if other < timestep]
            if name == "pndm" and len(calls) == 1:  # asked at the second timestep, it steps again from the first
                scheduler.num_inference_steps = Stride(distinct[0] - distinct[1])
            else:
                scheduler.num_inference_steps = Stride(int(timestep) - below[0] if below else int(timestep) + 1)
        scaled = scheduler.scale_model_input(x, timestep).float()
        calls.append((float(timestep), scaled.numpy().copy()))
        prediction = torch.from_numpy(predict(scaled.numpy(), float(timestep))).to(dtype)
        x = scheduler.step(prediction, timestep, x, **draws).prev_sample
        largest = max(largest, float(x.abs().max()))
    return x.numpy(), calls, largest


def ours(name, config, steps, predict=model):
    """-> result, [(timestep, model input)]."""
    calls = []

    def listen(x, timestep):
        assert x.dtype == np.float32 and isinstance(timestep, float)
        calls.append((timestep, x.copy()))
        return predict(x, timestep)

    plan, noise = samplers.plan(name, config, steps), Noise(7)
    walked = list(plan.run(listen, plan.start(noise.normal(SHAPE)), noise))
    assert len(walked) == plan.steps == steps
    assert all(part.dtype == np.float32 and part.shape == SHAPE for step in walked for part in step)
    return walked[-1].latents, calls


def difference(name, config, steps):
    """Largest difference of latents and model inputs, relative to the largest latent; timesteps must be equal."""
    expected, their_calls, largest = theirs(name, config, steps)
    result, our_calls = ours(name, config, steps)
    assert [timestep for timestep, _ in our_calls] == pytest.approx([t for t, _ in their_calls], abs=2e-3)
    pairs = [(expected, result)] + [(a, b) for (_, a), (_, b) in zip(their_calls, our_calls, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in pairs) / largest


def configurations(name, prediction, spacing):
    for values in product(*OPTIONS[name].values()):
        config = STABLE | {"prediction_type": prediction, "timestep_spacing": spacing}
        config |= dict(zip(OPTIONS[name], values, strict=True)) | ({"steps_offset": 1} if spacing == "leading" else {})
        yield config


def comparable(name, config, steps):
    linspace_of_one = steps == 1 and config["timestep_spacing"] == "linspace"
    if linspace_of_one and name in ("euler", "euler_a", "heun", "ddim", "pndm"):
        return False
    if name in ("ddim", "lcm") and config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon":
        return False
    ends_where_it_is = config.get("use_karras_sigmas") and config.get("final_sigmas_type") == "sigma_min"
    return not (name == "unipc" and steps == 1 and ends_where_it_is)


def test_every_sampler_has_a_row():
    assert set(OPTIONS) == set(samplers.SAMPLERS) == set(SCHEDULERS)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_trajectory_is_that_of_diffusers(name, prediction, spacing):
    if (name, prediction) in NOT_IN_DIFFUSERS:
        pytest.skip("not in diffusers; see test_prediction_types_agree")
    compared = 0
    for config in configurations(name, prediction, spacing):
        for steps in STEPS:
            if comparable(name, config, steps):
                assert difference(name, config, steps) < 1e-5, (config, steps)
                compared += 1
    assert compared


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_other_beta_schedules(name, beta_schedule):
    if name == "dpmpp_2m_karras" and beta_schedule == "squaredcos_cap_v2":
        pytest.skip("diffusers cuts the fraction off these timesteps here, and rounds it elsewhere")
    config = {"beta_schedule": beta_schedule, "timestep_spacing": "trailing", "prediction_type": "epsilon"}
    config |= {key: values[0] for key, values in OPTIONS[name].items()}
    assert difference(name, config, 10) < 1e-5


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_short_schedule(name):
    config = STABLE | {"num_train_timesteps": 100, "timestep_spacing": "leading"}
    config |= {key: values[0] for key, values in OPTIONS[name].items()}
    assert difference(name, config, 8) < 1e-5


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_defaults_of_an_old_configuration(name):
    """Stable Diffusion 1.5's file says neither spacing nor prediction type; each scheduler has its own default."""
    config = STABLE | {"num_train_timesteps": 1000, "steps_offset": 1}
    config |= {key: values[0] for key, values in OPTIONS[name].items() if key in ("skip_prk_steps", "clip_sample")}
    fixed = samplers.SAMPLERS[name].fixed
    expected, _, largest = theirs(name, config | fixed, 10)
    assert np.abs(expected - ours(name, config, 10)[0]).max() / largest < 1e-5


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_prediction_types_agree(name):
    """One model, said in three ways, gives one image."""
    config = STABLE | {"timestep_spacing": "trailing"}
    levels = {}

    def predicting(kind):
        def predict(x, timestep):
            level = levels[timestep]
            velocity = model(x, timestep)
            return {
                "v_prediction": velocity,
                "epsilon": level.alpha * velocity + level.sigma * x,
                "sample": level.alpha * x - level.sigma * velocity,
            }[kind]

        return predict

    results = []
    for kind in PREDICTIONS:
        plan = samplers.plan(name, config | {"prediction_type": kind}, 10)
        levels.update({level.timestep: level for level in plan.ladder.levels})
        if name == "dpmpp_2m_karras":  # two levels may round to one timestep
            levels.update({level.timestep: level for level in reversed(plan.ladder.levels)})
        results.append(ours(name, config | {"prediction_type": kind}, 10, predicting(kind))[0])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=2e-4 * np.abs(results[0]).max())


def test_one_linspace_step_begins_with_noise():
    for name in ("euler", "euler_a", "heun", "ddim", "pndm"):
        assert ours(name, {"timestep_spacing": "linspace"}, 1)[1][0][0] == 999
