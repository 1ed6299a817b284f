"""Prompts: text with adapter tags, schedules and emphasis, `[a red:a green:0.5] (apple:1.2) <lora:ink:0.8>`.

The language is AUTOMATIC1111's; what it makes of odd text, this makes of it too. In its order:

1. Lines that begin with `#` are comments; they go, their line ends with them.
2. Tags are cut out (`lora_edge.prompt.tags`); everything around one stays, doubled blanks too. Other angle brackets
   (`<3`, `<cat-toy>`) are text.
3. AND makes parts (`lora_edge.prompt.composition`).
4. Each part's schedules are resolved per step (`lora_edge.prompt.schedule`).
5. What holds at a step is read for emphasis and BREAK (`lora_edge.prompt.emphasis`).

In one thing it goes further: a tag inside a schedule or an alternation acts only in the steps in which the option that
it stands in holds. It is cut out before schedules are read, so that its colons are its own; a tag that stands outside
every option (also beside the number of `[a:b:5]`) always acts.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate

from lora_edge.errors import RequestError
from lora_edge.prompt import emphasis, schedule, tags
from lora_edge.prompt.composition import Extent, split
from lora_edge.prompt.excerpt import Excerpt
from lora_edge.prompt.parsed import AdapterCall, Part, Phase, Span

__all__ = ["AdapterCall", "Part", "Phase", "Prompt", "Span", "parse"]

_COMMENT = re.compile(r"^#[^\n]*(?:\n|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt, parsed.

    Attributes:
        source: as written.
        calls: every tag, in order.
    """

    source: str
    calls: tuple[AdapterCall, ...]
    _excerpt: Excerpt = field(repr=False, compare=False)
    _gaps: tuple[int, ...] = field(repr=False, compare=False)
    _parts: tuple[tuple[schedule.Stretch, float], ...] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The prompt without comments and tags."""
        return self._excerpt.text

    def phases(self, steps: int) -> tuple[Phase, ...]:
        """What the prompt says in each of so many sampling steps: phases that follow each other and differ.

        Raises:
            RequestError: less than one step.
            PromptError: options that are fine one by one make a malformed emphasis together.
        """
        if steps < 1:
            raise RequestError(f"steps is {steps}; it must be at least 1")
        turns: set[int] = set().union(*(stretch.turns(steps) for stretch, _ in self._parts))
        phases: list[Phase] = []
        for step in sorted(turns):
            phase = Phase(step, tuple(self._say(step, steps)), tuple(self._acting(step, steps)))
            if phases and replace(phases[-1], until=step) == phase:
                phases.pop()
            phases.append(phase)
        return tuple(phases)

    def _say(self, step: int, steps: int) -> Iterator[Part]:
        for stretch, weight in self._parts:
            said = Excerpt(self._excerpt, tuple(stretch.at(step, steps)))
            yield Part(emphasis.chunks(said.text, said.refuse), weight)

    def _acting(self, step: int, steps: int) -> Iterator[AdapterCall]:
        """The calls but those of tags in options that do not hold; a tag stands in a gap between two characters."""
        silent: set[int] = set()
        for stretch, _ in self._parts if self.calls else ():
            for option in stretch.silent(step, steps):
                silent |= set(range(bisect_left(self._gaps, option.start), bisect_right(self._gaps, option.end)))
        return (call for index, call in enumerate(self.calls) if index not in silent)


def parse(text: str, composition: bool = True) -> Prompt:
    """Read a prompt.

    Args:
        text: as written.
        composition: whether AND makes parts with weights; without, as in negative prompts, it is a word.

    Raises:
        PromptError: a malformed tag, weight or number of a step, an AND with a weight and nothing to weigh, or more
            than 100 brackets open at once.
    """
    spoken = Excerpt.without(text, list(_COMMENT.finditer(text)))
    found = list(tags.TAG.finditer(spoken.text))
    calls = tuple(tags.read(tag, spoken) for tag in found)
    excerpt = Excerpt.without(spoken, found)
    gaps = tuple(accumulate(end - start for start, end in excerpt.ranges))[:-1]
    extents = split(excerpt.text, excerpt.refuse) if composition else [Extent(0, len(excerpt.text))]
    for extent in extents:  # brackets pair inside one option or around all, so that one look at all options will do
        part = Excerpt(excerpt, ((extent.start, extent.end),))
        emphasis.chunks(part.text, part.refuse)
    stretches = (schedule.read(excerpt.text, extent.start, extent.end, excerpt.refuse) for extent in extents)
    parts = tuple((stretch, extent.weight) for stretch, extent in zip(stretches, extents, strict=True))
    return Prompt(text, calls, excerpt, gaps, parts)
