"""Multipliers: the user's numbers in `<lora:name:multiplier>`, constant or moving with the sampling step."""

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from lora_edge.blocks import BlockWeights
from lora_edge.errors import RequestError

_LARGEST = float(np.finfo(np.float32).max)


def is_finite(number: float) -> bool:
    """Whether the number is finite as float32, in which every multiplier ends."""
    return abs(number) <= _LARGEST


def is_plain(value: object) -> TypeGuard[float]:
    """Whether it is a number as Python has them, and finite: the commonest multiplier by far."""
    return type(value) in (float, int) and is_finite(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Course:
    """A multiplier that moves with the sampling step: straight lines between points, flat before and after.

    The rule is that of cheald/sd-webui-loractl (loractl/lib/utils.py, calculate_weight).

    Attributes:
        positions: where the weights hold, ascending; sampling steps from 0, or fractions of the way.
        weights: multipliers, one per position.
        fraction: whether positions are fractions; 1 is reached at step `steps - 2`, as there.

    Raises:
        RequestError: no points, as many positions as weights not given, positions that descend, numbers that are
            not finite.
    """

    positions: tuple[float, ...]
    weights: tuple[float, ...]
    fraction: bool

    def __post_init__(self) -> None:
        if not self.positions or len(self.positions) != len(self.weights):
            raise RequestError(f"a course has {len(self.positions)} positions for {len(self.weights)} weights")
        if not all(map(is_finite, (*self.positions, *self.weights))):
            raise RequestError("a course has a number that is not finite")
        if list(self.positions) != sorted(self.positions):
            raise RequestError(f"the positions of a course descend: {self.positions}")

    def at(self, step: int, steps: int) -> float:
        """The multiplier at a step, counted from 0, of so many steps."""
        place = step / max(steps - 2, 1) if self.fraction else step
        return float(np.interp(place, self.positions, self.weights))


@dataclass(frozen=True)
class Multiplier:
    """How strongly an adapter acts, per kind of component: 0 is off, 1 as trained, negative is the opposite.

    Attributes:
        unet: for the UNet.
        text: for every text encoder; prompts are encoded once, so it does not move.
        blocks: ratios per block on top of both, None for 1 everywhere.
        window: first and last sampling step, counted from 1, in which the UNet's number acts; None for all.
    """

    unet: float | Course = 1.0
    text: float = 1.0
    blocks: BlockWeights | None = None
    window: tuple[int, int] | None = None

    @classmethod
    def of(cls, value: "float | Multiplier") -> "Multiplier":
        """A plain number acts everywhere alike.

        Raises:
            RequestError: the number is not finite.
        """
        made = value if isinstance(value, Multiplier) else cls(float(value), float(value))
        for number in (made.unet, made.text):
            if not isinstance(number, Course) and not is_finite(number):
                raise RequestError(f"multiplier {number} is not a finite number")
        return made

    def number(self, component: str, step: int = 0, steps: int = 1) -> float:
        """The number for one component of a bundle at a step, counted from 0; 0 outside the window."""
        if component.startswith("text_encoder"):
            return self.text
        if self.window and not self.window[0] <= step + 1 <= self.window[1]:
            return 0.0
        return self.unet.at(step, steps) if isinstance(self.unet, Course) else self.unet

    @property
    def moves(self) -> bool:
        """Whether the UNet's number depends on the step."""
        return isinstance(self.unet, Course) or self.window is not None
