"""Prompts of any length in pieces that a text encoder can read.

The rules are AUTOMATIC1111's (modules/sd_hijack_clip.py, tokenize_line): 75 tokens a chunk, a chunk that would end
within a phrase ends at its last comma if that is near, `BREAK` ends one early, and an embedding is never cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_edge.errors import RequestError
from lora_edge.prompt import Span
from lora_edge.runtime.words import Words

COMMA = ","
BACKTRACK = 20  # tokens behind the last comma that may move to the next chunk


@dataclass(frozen=True)
class Chunk:
    """What a text encoder reads at once, without start, end and padding.

    Attributes:
        ids: of the tokens, embeddings included.
        weights: emphasis of each.
    """

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def chunked(groups: Sequence[Sequence[Span]], words: Words) -> list[Chunk]:
    """Cut a prompt into chunks.

    Args:
        groups: texts with their emphasis; between two groups stands a BREAK.
        words: tokenizer and embeddings.

    Returns:
        One chunk at least.

    Raises:
        RequestError: an embedding is longer than a chunk, or a text is not valid Unicode.
    """
    cutter = _Cutter(words)
    for index, group in enumerate(groups):
        if index:
            cutter.cut()
        for span in group:
            cutter.add(span)
    if cutter.ids or not cutter.chunks:
        cutter.cut()
    return cutter.chunks


class _Cutter:
    def __init__(self, words: Words) -> None:
        self.words = words
        self.room = words.tokenizer.max_length - 2
        self.comma = words.tokenizer.encode(COMMA)
        self.chunks: list[Chunk] = []
        self.ids: list[int] = []
        self.weights: list[float] = []
        self.behind_comma: int | None = None  # where the phrase after the last comma begins

    def cut(self, at: int | None = None) -> None:
        """End the chunk, before `at` if given; what stands behind moves on."""
        self.chunks.append(Chunk(tuple(self.ids[:at]), tuple(self.weights[:at])))
        self.ids = [] if at is None else self.ids[at:]
        self.weights = [] if at is None else self.weights[at:]
        self.behind_comma = None

    def add(self, span: Span) -> None:
        ids = self.words.tokenizer.encode(span.text)
        position = 0
        while position < len(ids):
            comma = [ids[position]] == self.comma
            if comma:
                self.behind_comma = len(self.ids) + 1
            full = len(self.ids) == self.room
            if full and not comma and self.behind_comma and len(self.ids) + 1 - self.behind_comma <= BACKTRACK:
                self.cut(self.behind_comma)
            if len(self.ids) == self.room:
                self.cut()
            found = self.words.embedding_at(ids, position)
            added, taken = found or ((ids[position],), 1)
            if len(added) > self.room:
                raise RequestError(f"an embedding of {len(added)} vectors does not fit; a prompt takes {self.room}")
            if len(self.ids) + len(added) > self.room:
                self.cut()
            self.ids += added
            self.weights += [span.weight] * len(added)
            position += taken
