"""The noise schedule a model was trained with, read from a diffusers `scheduler_config.json`.

A latent at training step t is `x = alpha * image + sigma * noise` with alpha**2 + sigma**2 = 1; the schedule says what
alpha and sigma are at each t. Which of these levels a run visits is the business of `levels`, how it goes from one to
the next that of `samplers`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_edge.arrays import FloatArray
from lora_edge.errors import RequestError

Doubles = NDArray[np.float64]

MAX_TIMESTEPS = 100_000

# Least signal at the last step, for solvers that divide by it: float16's smallest positive number.
TERMINAL_FLOOR = 2.0**-24


@dataclass(frozen=True)
class Schedule:
    """Betas, what the model predicts, and which training steps a run visits; names and defaults as in diffusers.

    Attributes:
        num_train_timesteps: length of the schedule.
        beta_start, beta_end: noise variance added by the first and last training step.
        beta_schedule: how betas go from one to the other: linear, scaled_linear, squaredcos_cap_v2.
        trained_betas: the betas themselves, instead.
        prediction_type: what the model predicts: epsilon, v_prediction, sample.
        timestep_spacing: leading, trailing, linspace (Lin et al., arXiv:2305.08891, table 2).
        steps_offset: added to every timestep of leading spacing.
        rescale_betas_zero_snr: the last training step is pure noise (Lin et al., arXiv:2305.08891, algorithm 1).
        use_karras_sigmas: noise levels of Karras et al. (arXiv:2206.00364, equation 5) in place of the spacing's.
        final_sigmas_type: where a run ends: zero, or sigma_min, the first level of the training.
        set_alpha_to_one: the same question, as ddim and pndm ask it.
        clip_sample, clip_sample_range: bound on the denoised estimate, for models of pixels.
        original_inference_steps: steps of the schedule that an LCM was distilled on.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    original_inference_steps: int = 50

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(choices)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in _TYPES[type(field.default)]:
                raise RequestError(f"{field.name} is {value!r}, which is of the wrong type")
        if self.trained_betas is not None:
            object.__setattr__(self, "trained_betas", tuple(self.trained_betas))
            object.__setattr__(self, "num_train_timesteps", len(self.trained_betas))
        for name in ("num_train_timesteps", "original_inference_steps"):
            if not 1 <= getattr(self, name) <= MAX_TIMESTEPS:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be from 1 to {MAX_TIMESTEPS}")
        betas = self.trained_betas or (self.beta_start, self.beta_end)
        if not all(isinstance(beta, int | float) and 0 < beta < 1 for beta in betas):
            raise RequestError("the schedule has a beta that is not between 0 and 1")

    @classmethod
    def of(cls, config: Mapping[str, Any], **overrides: Any) -> "Schedule":
        """Reads a scheduler's configuration.

        Args:
            config: contents of `scheduler_config.json`. Keys of `Schedule` are taken; keys about the solver the file
                was written for (`SOLVER_KEYS`) say nothing here, as a sampler is chosen by name.
            overrides: attributes of `Schedule`, in place of the file's.

        Raises:
            RequestError: a key is unknown, or asks for something that is not there.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(overrides) - known) + [
            key for key in config if key not in known | SOLVER_KEYS | ONLY.keys() and not key.startswith("_")
        ]
        if unknown:
            raise RequestError(f"unknown scheduler setting: {', '.join(unknown)}")
        for key, accepted in ONLY.items():
            if key in config and config[key] not in accepted:
                raise RequestError(f"the scheduler setting {key} is {config[key]!r}; only {accepted[0]!r} is supported")
        # null in a configuration is the default, as in diffusers.
        return cls(**{key: value for key, value in config.items() if key in known and value is not None} | overrides)

    def only(self, names: Collection[str]) -> "Schedule":
        """This schedule with the attributes not named at their defaults, for a solver that knows of no others."""
        return Schedule(**{name: getattr(self, name) for name in names})

    @cached_property
    def betas(self) -> Doubles:
        """Noise variance each training step adds: [timesteps] float64."""
        return BETAS[self.beta_schedule](self) if self.trained_betas is None else np.array(self.trained_betas)

    @cached_property
    def alpha_bars(self) -> Doubles:
        """alpha**2 of each training step: [timesteps] float64, descending.

        Trainers keep these tables in float32, and 1 - alpha**2 of the first step has few digits there. A model has
        learned those very numbers, so they are rounded where trainers round. Everything after is float64.
        """
        betas = self.betas.astype(np.float32)
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return _alpha_bars(betas).astype(np.float64)

    @cached_property
    def alpha_bars_floored(self) -> Doubles:
        """`alpha_bars`, kept from zero at the last step."""
        floored = self.alpha_bars.copy()
        if self.rescale_betas_zero_snr:
            floored[-1] = TERMINAL_FLOOR
        return floored

    @cached_property
    def sigmas(self) -> Doubles:
        """Noise to signal, sigma / alpha, of each training step: [timesteps] float64, ascending, finite."""
        return np.sqrt((1 - self.alpha_bars_floored) / self.alpha_bars_floored)


def _alpha_bars(betas: FloatArray) -> FloatArray:
    return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)


def _scaled_linear(schedule: Schedule) -> Doubles:
    first, last = np.sqrt([schedule.beta_start, schedule.beta_end])
    roots: Doubles = np.linspace(first, last, schedule.num_train_timesteps).astype(np.float64)
    return roots * roots


def _squared_cosine(schedule: Schedule) -> Doubles:
    """Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672, equation 17."""
    times = np.linspace(0, 1, schedule.num_train_timesteps + 1)
    signal = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Doubles = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return betas


def _zero_terminal_snr(betas: FloatArray) -> FloatArray:
    """Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, algorithm 1."""
    alphas = np.sqrt(_alpha_bars(betas))
    shifted = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    signal = shifted**2
    return 1 - np.concatenate([signal[:1], signal[1:] / signal[:-1]])


BETAS: Mapping[str, Callable[[Schedule], Doubles]] = {
    "linear": lambda schedule: np.linspace(schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps),
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
}

CHOICES: Mapping[str, tuple[str, ...]] = {
    "beta_schedule": tuple(BETAS),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
}

_TYPES: Mapping[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
    type(None): (type(None), tuple, list),
}

# Settings that some diffusers scheduler has and that change the result unless they have one of these values.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "thresholding": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "lambda_min_clipped": (float("-inf"), None, "-Infinity"),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "interpolation_type": ("linear", None),
    "timestep_type": ("discrete", None),
    "timestep_scaling": (10.0, None),
}

# Settings of the solver that the file was written for, and companions of settings refused above.
SOLVER_KEYS = frozenset(
    {"skip_prk_steps", "solver_order", "solver_type", "solver_p", "predict_x0", "disable_corrector", "algorithm_type"}
    | {"lower_order_final", "euler_at_final", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift"}
    | {"time_shift_type"}
)
