"""Numbers and courses inside tags."""

import math
import re

from lora_edge.multiplier import Course, is_finite
from lora_edge.prompt.parsed import Refuse

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_STEP = re.compile(r"[0-9]{1,9}")


def items(text: str, separators: str, at: int) -> list[tuple[str, int]]:
    """The pieces between separators, each with the place where it starts; `at` is where the text does."""
    return [(piece[0], at + piece.start()) for piece in re.finditer(f"(?:^|(?<=[{separators}]))[^{separators}]*", text)]


def number(text: str, at: int, refuse: Refuse, word: str = "multiplier") -> float:
    """A finite number, blanks around it allowed.

    Raises:
        PromptError: it is none; `word` says in the message what it should have been.
    """
    found = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not is_finite(found):
        raise refuse(f"the {word} {text!r} is not a finite number", at)
    return found


def number_or_course(text: str, at: int, refuse: Refuse) -> float | Course:
    """A number, or a course like `1@0,0@0.5`.

    Raises:
        PromptError: one of its numbers is none.
    """
    if not re.search("[@~]", text):
        return number(text, at, refuse)
    points = sorted((_point(*item, refuse) for item in items(text, ",;", at)), key=lambda point: point[0])
    positions, weights = zip(*points, strict=True)
    return Course(positions, weights, fraction=positions[-1] <= 1)


def _point(text: str, at: int, refuse: Refuse) -> tuple[float, float]:
    """(position, weight) of `weight@position`; a weight alone stands at position 1."""
    (weight, start), *rest = items(text, "@~", at)
    if len(rest) > 1:
        raise refuse(f"{text!r} has more than one position", rest[1][1] - 1)
    return (number(*rest[0], refuse, "position") if rest else 1.0), number(weight, start, refuse)


def step(text: str, at: int, refuse: Refuse) -> int:
    """A sampling step, counted from 1.

    Raises:
        PromptError: it is no whole number.
    """
    if not _STEP.fullmatch(text):
        raise refuse(f"the step {text!r} is not a whole number", at)
    return int(text)


def steps(text: str, at: int, refuse: Refuse) -> tuple[int, int]:
    """Two sampling steps, `5-10`.

    Raises:
        PromptError: they are not two whole numbers.
    """
    both = items(text, "-", at)
    if len(both) != 2:
        raise refuse(f"the steps {text!r} are not two whole numbers like 5-10", at)
    return step(*both[0], refuse), step(*both[1], refuse)
