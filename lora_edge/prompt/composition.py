"""Composition: `a cat :1.2 AND a dog :0.5`.

The rules are AUTOMATIC1111's (modules/prompt_parser.py, get_multicond_prompt_list): the word AND, in capitals, cuts the
prompt before schedules and emphasis are read; a colon and a number at the end of a part are its weight, in a prompt of
one part too (`at 16:9` is `at 16` with weight 9); blanks at the end of a part go.
"""

import math
import re
from dataclasses import dataclass

from lora_edge.prompt.parsed import Refuse

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")


@dataclass(frozen=True)
class Extent:
    """Where a part stands in the text, and what it weighs."""

    start: int
    end: int
    weight: float = 1.0


def split(text: str, refuse: Refuse) -> list[Extent]:
    """The parts, in order; at least one, possibly empty.

    Raises:
        PromptError: a weight that is not finite, or one of a part without text, beside other parts.
    """
    words = list(_AND.finditer(text))
    starts = [0, *(word.end() for word in words)]
    ends = [*(word.start() for word in words), len(text)]
    return [_part(text, start, end, bool(words), refuse) for start, end in zip(starts, ends, strict=True)]


def _part(text: str, start: int, end: int, composed: bool, refuse: Refuse) -> Extent:
    end = _stripped(text, start, end)
    colon = text.rfind(":", start, end)
    found = _WEIGHT.fullmatch(text, colon + 1, end) if colon >= 0 else None
    if not found:
        return Extent(start, end)
    part = Extent(start, _stripped(text, start, colon), float(found[1]))
    if not math.isfinite(part.weight):
        raise refuse("the weight of this part is not a finite number", found.start(1))
    if composed and part.start == part.end:
        raise refuse("this part has a weight but no text", colon)
    return part


def _stripped(text: str, start: int, end: int) -> int:
    """`end` without the blanks before it."""
    return start + len(text[start:end].rstrip())
