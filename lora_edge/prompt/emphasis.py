r"""Emphasis: `(a)` counts 1.1, `[a]` 1 / 1.1, `(a:1.3)` 1.3, `\(` is a bracket; BREAK ends a chunk.

The rules are AUTOMATIC1111's (modules/prompt_parser.py, parse_prompt_attention), its oddities too:

- an unclosed bracket reaches to the end, a closing one without an opening one is text;
- a weight needs a round bracket: `[a:1.3]` is the text `a:1.3` at 1 / 1.1, and `a:1.3)` is text;
- a backslash before anything but a bracket or a backslash vanishes;
- round brackets and square ones are matched apart, so that `(a [b) c]` is two overlapping ranges;
- a BREAK inside emphasis does not break: it is the word BREAK, with the negative of the emphasis around it.

Where that program stops with a traceback (`(a:1.2.3)`) or overflows, this refuses.
"""

import math
import re
from itertools import groupby

import numpy as np

from lora_edge.prompt.parsed import MAX_DEPTH, Refuse, Span

_ROUND, _SQUARE = 1.1, 1 / 1.1

_TOKEN = re.compile(
    r"(?P<escaped>\\[][()\\]?)|(?P<opens>[([])|(?P<weight>:\s*(?P<number>[+-]?[.\d]+)\s*\))|(?P<closes>[])])|[^][()\\:]+|:"
)
_BREAK = re.compile(r"\bBREAK\b")

_Piece = tuple[str, float]
_MARK: _Piece = ("BREAK", -1.0)


def chunks(text: str, refuse: Refuse) -> tuple[tuple[Span, ...], ...]:
    """The spans of a text that has no schedules left, in groups ended by each BREAK; at least one group.

    Raises:
        PromptError: a weight that is no finite number, or more than `MAX_DEPTH` brackets open at once.
    """
    groups: list[list[Span]] = [[]]
    for piece in _merged(_weighted(text, refuse)):
        if piece == _MARK:
            groups.append([])
        elif piece[0]:
            groups[-1].append(Span(*piece))
    if len(groups) > 1 and not groups[-1]:
        del groups[-1]
    return tuple(map(tuple, groups))


def _weighted(text: str, refuse: Refuse) -> list[_Piece]:
    """The pieces between brackets, each with the product of the factors around it.

    They are multiplied in the order in which the brackets close, so that rounding is the same as there.
    """
    pieces: list[_Piece] = []
    places: list[int] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    ranges: list[tuple[int, int, float]] = []

    def close(kind: str, factor: float) -> None:
        ranges.append((opened[kind].pop(), len(pieces), factor))

    for token in _TOKEN.finditer(text):
        word, at = token[0], token.start()
        if token["escaped"]:
            pieces.append((word[1:], 1.0))
        elif token["opens"]:
            if len(opened["("]) + len(opened["["]) == MAX_DEPTH:
                raise refuse(f"more than {MAX_DEPTH} brackets are open here", at)
            opened[word].append(len(pieces))
        elif token["weight"] and opened["("]:
            close("(", _number(token["number"], token.start("number"), refuse))
        elif word == ")" and opened["("]:
            close("(", _ROUND)
        elif word == "]" and opened["["]:
            close("[", _SQUARE)
        else:
            pieces += _broken(word)
        places += [at] * (len(pieces) - len(places))
    ranges += [(start, len(pieces), _ROUND) for start in opened["("]]
    ranges += [(start, len(pieces), _SQUARE) for start in opened["["]]
    weights = np.array([weight for _, weight in pieces], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for start, end, factor in ranges:
            weights[start:end] *= factor
    wrong = np.flatnonzero(~np.isfinite(weights))
    if len(wrong):
        raise refuse("the emphasis is not a finite number", places[wrong[0]])
    return [(said, weight) for (said, _), weight in zip(pieces, weights.tolist(), strict=True)]


def _number(text: str, at: int, refuse: Refuse) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise refuse(f"the emphasis {text!r} is not a finite number", at)
    return number


def _broken(text: str) -> list[_Piece]:
    """The text cut at each BREAK, with the blanks around it; a mark in its place."""
    if "BREAK" not in text:
        return [(text, 1.0)]
    first, *rest = _BREAK.split(text)
    if not rest:
        return [(first, 1.0)]
    texts = [first.rstrip(), *(text.strip() for text in rest[:-1]), rest[-1].lstrip()]
    return [piece for text in texts for piece in (_MARK, (text, 1.0))][1:]


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Neighbours of equal weight as one."""
    return [
        ("".join(text for text, _ in alike), weight) for weight, alike in groupby(pieces, key=lambda piece: piece[1])
    ]
