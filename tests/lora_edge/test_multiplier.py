"""Multipliers per component and step: courses against numpy.interp, windows, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lora_edge.errors import RequestError
from lora_edge.multiplier import Course, Multiplier
from lora_edge.prompt import parse

COURSES = json.loads((Path(__file__).parent / "prompts" / "courses.json").read_text("utf-8"))


@pytest.mark.parametrize(("tag", "steps", "text", "unet"), COURSES, ids=lambda cell: str(cell))
def test_a_tag_s_numbers_step_by_step(tag: str, steps: int, text: float, unet: list[float]) -> None:
    """Written by hand from the rule of loractl, and, for windows, of lora-block-weight."""
    multiplier = parse(tag).calls[0].multiplier
    assert [multiplier.number("unet", step, steps) for step in range(steps)] == pytest.approx(unet)
    assert {multiplier.number("text_encoder_2", step, steps) for step in range(steps)} == {text}
    assert multiplier.moves == ("@" in tag.replace("te=0.2@0,1@2", "") or "~" in tag or "st" in tag)


@pytest.mark.parametrize("steps", [3, 20, 50])
def test_a_course_in_fractions_is_numpy_s_interpolation_over_steps_less_two(steps: int) -> None:
    positions, weights = (0.1, 0.4, 0.4, 0.9), (1.0, -0.5, 0.25, 2.0)
    course = Course(positions, weights, fraction=True)
    expected = np.interp(np.arange(steps) / (steps - 2), positions, weights)
    np.testing.assert_array_equal([course.at(step, steps) for step in range(steps)], expected)


def test_a_plain_number_acts_everywhere_alike() -> None:
    multiplier = Multiplier.of(0.7)
    assert multiplier == Multiplier(0.7, 0.7)
    assert [multiplier.number(name) for name in ("unet", "text_encoder", "text_encoder_2", "vae_decoder")] == [0.7] * 4
    assert not multiplier.moves
    assert Multiplier.of(multiplier) is multiplier


def test_a_window_silences_the_unet_alone() -> None:
    multiplier = Multiplier(unet=2, text=0.5, window=(2, 3))
    assert [multiplier.number("unet", step, 4) for step in range(4)] == [0, 2, 2, 0]
    assert multiplier.number("text_encoder", 0, 4) == 0.5
    assert multiplier.moves


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_number_that_is_not_finite_is_refused(number: float) -> None:
    for made in (number, Multiplier(unet=number), Multiplier(text=number)):
        with pytest.raises(RequestError, match="is not a finite number"):
            Multiplier.of(made)
    for positions, weights in (((0.0, number), (1.0, 1.0)), ((0.0, 1.0), (1.0, number))):
        with pytest.raises(RequestError, match="not finite"):
            Course(positions, weights, fraction=False)


@pytest.mark.parametrize(
    ("positions", "weights", "message"),
    [((), (), "0 positions"), ((0.0,), (1.0, 2.0), "1 positions for 2 weights"), ((1.0, 0.0), (1.0, 1.0), "descend")],
)
def test_a_course_without_sense_is_refused(
    positions: tuple[float, ...], weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Course(positions, weights, fraction=False)


def test_multipliers_can_be_keys() -> None:
    one, other = (parse("<lora:a:1@0,0@1:lbw=INS:lbwe=M00:attn:0:start=2>").calls[0].multiplier for _ in range(2))
    assert {one: 1}[other] == 1
