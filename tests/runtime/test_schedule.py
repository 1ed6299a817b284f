"""The schedule equals the tables of diffusers' schedulers, and refuses what it does not know."""

import json

import diffusers
import numpy as np
import pytest

from lora_edge.errors import RequestError
from lora_edge.runtime import samplers
from lora_edge.runtime.schedule import BETAS, Schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STABLE = {"beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("length", [1000, 100])
@pytest.mark.parametrize("betas", [{}, STABLE])
def test_tables(beta_schedule, zero_snr, length, betas):
    config = {
        "beta_schedule": beta_schedule,
        "rescale_betas_zero_snr": zero_snr,
        "num_train_timesteps": length,
        **betas,
    }
    theirs = diffusers.DDIMScheduler(**config).alphas_cumprod.double().numpy()
    ours = Schedule.of(config).alpha_bars
    assert ours.shape == (length,) and ours.dtype == np.float64
    # As weights of the image; the rescaling to zero subtracts float32 numbers, whose last digit differs.
    np.testing.assert_allclose(np.sqrt(ours), np.sqrt(theirs), rtol=0, atol=1e-6)
    assert (ours[-1] == 0) == zero_snr


def test_zero_snr_is_floored_for_solvers_that_divide():
    config = {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear", **STABLE}
    theirs = diffusers.EulerDiscreteScheduler(**config).sigmas.double().numpy()[:-1][::-1]
    np.testing.assert_allclose(Schedule.of(config).sigmas, theirs, rtol=1e-4)
    assert np.isfinite(Schedule.of(config).sigmas).all()


def test_trained_betas():
    betas = [0.1, 0.2, 0.3]
    schedule = Schedule.of({"trained_betas": betas, "num_train_timesteps": 3})
    np.testing.assert_allclose(schedule.alpha_bars, diffusers.DDIMScheduler(trained_betas=betas).alphas_cumprod)
    assert schedule.num_train_timesteps == 3


@pytest.mark.parametrize(
    "scheduler", sorted({*samplers.NATIVE, "DDPMScheduler", "DEISMultistepScheduler", "KDPM2DiscreteScheduler"})
)
def test_saved_configurations_are_read(scheduler, tmp_path):
    """Whatever diffusers writes for a scheduler with default settings is understood, key by key."""
    getattr(diffusers, scheduler)().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert Schedule.of(config).num_train_timesteps == 1000


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'; it can be linear, scaled_linear"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type is 'one'"),
        ({"num_train_timesteps": 0}, "from 1 to 100000"),
        ({"num_train_timesteps": 10**12}, "from 1 to 100000"),
        ({"trained_betas": []}, "from 1 to 100000"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5, which is of the wrong type"),
        ({"beta_start": "0.1"}, "beta_start is '0.1', which is of the wrong type"),
        ({"use_karras_sigmas": "yes"}, "wrong type"),
        ({"beta_end": 1.5}, "not between 0 and 1"),
        ({"beta_start": 0.0}, "not between 0 and 1"),
        ({"beta_end": float("nan")}, "not between 0 and 1"),
        ({"trained_betas": [0.1, -0.1]}, "not between 0 and 1"),
        ({"trained_betas": [0.1, "x"]}, "not between 0 and 1"),
        ({"thresholding": True}, "thresholding is True"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas is True"),
        ({"variance_type": "learned_range"}, "variance_type"),
        ({"bet_start": 0.1, "wobble": 2}, "unknown scheduler setting: bet_start, wobble"),
    ],
)
def test_refusals(config, says):
    with pytest.raises(RequestError, match=says):
        Schedule.of(config)


def test_unknown_override():
    with pytest.raises(RequestError, match="unknown scheduler setting: wobble"):
        Schedule.of({}, wobble=1)


def test_frozen():
    with pytest.raises(AttributeError):
        Schedule().beta_end = 1  # type: ignore[misc]
