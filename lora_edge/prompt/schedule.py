"""Schedules: `[from:to:when]`, `[to:when]`, `[from::when]`, and alternation, `[a|b|c]`.

The rules are AUTOMATIC1111's grammar (modules/prompt_parser.py, schedule_parser), read by one pass with a stack:

- `from` holds while step <= when, steps counted from 1. A `when` with a point is a fraction of the steps, else a step.
- `[a|b]` takes its options in turn, one a step; options may be empty.
- What is inside must be balanced. Brackets that are not (`[a`, `(a]`), square ones with colons but no number at the end
  (`[a:b]`) and round ones with more than one colon are text, and so is every bracket around them.
- A `|` outside an alternation, or a backslash with nothing or a line end after it, makes a text without any schedule:
  all of it is taken as written.

What that grammar leaves open is a schedule here: with an unbalanced bracket or a colon right behind it (`[a:b:5])`),
chance decides there between schedule and text. Where that program stops with a traceback (a `when` that is not
finite), this refuses.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lora_edge.prompt.parsed import MAX_DEPTH, Refuse

_TOKEN = re.compile(r"\\.|[][():|\\]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class Stretch:
    """A stretch of the text, and the choices inside.

    Attributes:
        start, end: offsets; `end` is past the last character, and before `start` where the text has no such stretch.
        choices: in order, none inside another.
    """

    start: int
    end: int
    choices: tuple["Choice", ...] = ()

    def inner(self) -> Iterator["Choice"]:
        """Every choice inside, those inside other choices too."""
        for choice in self.choices:
            yield choice
            for option in choice.options:
                yield from option.inner()

    def at(self, step: int, steps: int) -> Iterator[tuple[int, int]]:
        """The ranges of the text that hold at a step, counted from 1."""
        start = self.start
        for choice in self.choices:
            yield start, choice.start
            yield from choice.options[choice.chosen(step, steps)].at(step, steps)
            start = choice.end
        yield start, max(start, self.end)

    def silent(self, step: int, steps: int) -> Iterator["Stretch"]:
        """The options that do not hold at a step; what is inside them is not listed again."""
        for choice in self.choices:
            chosen = choice.chosen(step, steps)
            yield from choice.options[:chosen]
            yield from choice.options[chosen].silent(step, steps)
            yield from choice.options[chosen + 1 :]

    def turns(self, steps: int) -> set[int]:
        """The last steps, counted from 1, after which something may change."""
        inner = list(self.inner())
        if any(choice.when is None for choice in inner):
            return set(range(1, steps + 1))
        return {steps} | {turn for choice in inner if (turn := choice.until(steps)) >= 1}


@dataclass(frozen=True)
class Choice:
    """A pair of square brackets of which one option holds at a time.

    Attributes:
        start, end: offsets of the brackets, the closing one included.
        options: two for a schedule, before and after.
        when: the number as written; None for an alternation.
    """

    start: int
    end: int
    options: tuple[Stretch, ...]
    when: str | None

    def until(self, steps: int) -> int:
        """The last step of the first option of a schedule."""
        number = float(self.when or 0)
        return min(steps, int(number * steps if "." in (self.when or "") else number))

    def chosen(self, step: int, steps: int) -> int:
        """Index of the option that holds at a step."""
        return (step - 1) % len(self.options) if self.when is None else int(step > self.until(steps))


@dataclass
class _Open:
    """A bracket that is not closed yet, or the text around all."""

    at: int
    kind: str
    marks: list[tuple[str, int]] = field(default_factory=list)
    inside: list[list[Choice]] = field(default_factory=lambda: [[]])

    @property
    def choices(self) -> list[Choice]:
        return [choice for stretch in self.inside for choice in stretch]


def read(text: str, start: int, end: int, refuse: Refuse) -> Stretch:
    """The schedules of one stretch of a text.

    Raises:
        PromptError: more than `MAX_DEPTH` brackets open at once, or a `when` that is not finite.
    """
    outer, stack = _Open(start, ""), list[_Open]()
    piped = False
    for token in _TOKEN.finditer(text, start, end):
        mark, at = token[0], token.start()
        if mark == "\\":
            return Stretch(start, end)
        if mark in "([":
            if len(stack) == MAX_DEPTH:
                raise refuse(f"more than {MAX_DEPTH} brackets are open here", at)
            stack.append(_Open(at, mark))
        elif mark in ":|":
            group = stack[-1] if stack else outer
            group.marks.append((mark, at))
            group.inside.append([])
        elif mark in _CLOSES:
            found = _close(text, stack, mark, at, refuse)
            if found is None:
                piped |= _give_up(outer, stack)
            else:
                (stack[-1] if stack else outer).inside[-1] += found
    piped |= _give_up(outer, stack)
    return Stretch(start, end) if piped else Stretch(start, end, tuple(outer.choices))


def _give_up(outer: _Open, stack: list[_Open]) -> bool:
    """Every open bracket is text; whether a `|` is, too."""
    marks = [mark for group in (outer, *stack) for mark, _ in group.marks]
    outer.inside = [[choice for group in (outer, *stack) for choice in group.choices]]
    outer.marks = []
    stack.clear()
    return "|" in marks


def _close(text: str, stack: list[_Open], mark: str, at: int, refuse: Refuse) -> list[Choice] | None:
    """Closes the innermost bracket: the choices that it gives to what is around it, None where it is no pair."""
    if not stack or stack[-1].kind != _CLOSES[mark]:
        return None
    group = stack[-1]
    marks = "".join(mark for mark, _ in group.marks)
    edges = [group.at, *(place for _, place in group.marks), at]
    made: list[Choice] | None = None
    if not marks or (mark, marks) == (")", ":"):
        made = group.choices
    elif mark == "]" and set(marks) == {"|"}:
        made = [Choice(group.at, at + 1, tuple(_options(group, edges)), None)]
    elif mark == "]" and marks in (":", "::") and (when := _WHEN.fullmatch(text, edges[-2] + 1, at)):
        if not math.isfinite(float(when[1])):
            raise refuse(f"the step {when[1]!r} is not a finite number", when.start(1))
        *before, after, _ = _options(group, edges)
        nothing = Stretch(group.at + 1, group.at)
        made = [Choice(group.at, at + 1, (*(before or [nothing]), after), when[1])]
    if made is not None:
        stack.pop()
    return made


def _options(group: _Open, edges: list[int]) -> Iterator[Stretch]:
    for left, right, choices in zip(edges, edges[1:], group.inside, strict=False):
        yield Stretch(left + 1, right, tuple(choices))
