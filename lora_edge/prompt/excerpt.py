"""Pieces of a text that still know where they stood."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lora_edge.errors import PromptError


@dataclass(frozen=True)
class Excerpt:
    """Ranges of a text, side by side.

    Attributes:
        whole: what they are cut from.
        ranges: start and end of each, in order; at least one.
    """

    whole: "str | Excerpt"
    ranges: Sequence[tuple[int, int]]

    @cached_property
    def text(self) -> str:
        whole = self.whole if isinstance(self.whole, str) else self.whole.text
        return "".join(whole[start:end] for start, end in self.ranges)

    @property
    def source(self) -> str:
        """The text at the bottom."""
        return self.whole if isinstance(self.whole, str) else self.whole.source

    def place(self, at: int) -> int:
        """Where the character at this offset stands in the source."""
        for start, end in self.ranges:
            if at < end - start:
                break
            at -= end - start
        else:
            start, at = self.ranges[-1][1], 0
        return start + at if isinstance(self.whole, str) else self.whole.place(start + at)

    def refuse(self, message: str, at: int) -> PromptError:
        """The error for a place in this excerpt."""
        return PromptError(message, self.source, self.place(at))

    @classmethod
    def without(cls, whole: "str | Excerpt", cuts: Sequence[re.Match[str]]) -> "Excerpt":
        """A text less the matches of a pattern in it."""
        text = whole if isinstance(whole, str) else whole.text
        starts = [0, *(cut.end() for cut in cuts)]
        ends = [*(cut.start() for cut in cuts), len(text)]
        return cls(whole, tuple(zip(starts, ends, strict=True)))
