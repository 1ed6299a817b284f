"""The words of a text encoder: its tokenizer's, and those that embeddings teach it (textual inversion)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.embedding import Embedding
from lora_edge.errors import RequestError
from lora_edge.runtime.tokenizer import Tokenizer


@dataclass
class Words:
    """A vocabulary for one request. Ids from `vocabulary` on stand for the rows of `tokens`, in order of first use.

    Attributes:
        tokenizer: of the base.
        component: the text encoder that reads them.
        vocabulary: ids that the base itself has.
        dim: width of the text encoder.
        embeddings: name -> the vectors it stands for.
    """

    tokenizer: Tokenizer
    component: str
    vocabulary: int
    dim: int
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ids: dict[str, tuple[int, ...]] = {}
        self._rows: list[FloatArray] = []
        self._spelled: dict[int, list[tuple[list[int], str]]] = {}
        for name in self.embeddings:
            ids = self.tokenizer.encode(name)
            if ids:
                self._spelled.setdefault(ids[0], []).append((ids, name))
        for spellings in self._spelled.values():
            spellings.sort(key=lambda spelling: len(spelling[0]), reverse=True)

    @property
    def tokens(self) -> FloatArray:
        """`lora.tokens` [n, dim] float32: the vectors of every embedding that was found so far."""
        return np.concatenate(self._rows) if self._rows else np.zeros((0, self.dim), np.float32)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the embeddings that were found so far."""
        return tuple(self._ids)

    def embedding_at(self, ids: Sequence[int], position: int) -> tuple[tuple[int, ...], int] | None:
        """The longest embedding's name that begins there: its own ids, and how many ids its name takes."""
        for spelling, name in self._spelled.get(ids[position], ()):
            if list(ids[position : position + len(spelling)]) == spelling:
                return self._taught(name), len(spelling)
        return None

    def _taught(self, name: str) -> tuple[int, ...]:
        if name not in self._ids:
            vectors = self.embeddings[name].vectors.get(self.component)
            if vectors is None or vectors.shape[1] != self.dim:
                has = ", ".join(f"{part} {array.shape[1]}" for part, array in self.embeddings[name].vectors.items())
                raise RequestError(f"the embedding {name!r} has width {has}; {self.component} has width {self.dim}")
            start = self.vocabulary + sum(map(len, self._rows))
            self._rows.append(vectors)
            self._ids[name] = tuple(range(start, start + len(vectors)))
        return self._ids[name]
