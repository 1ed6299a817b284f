"""Textual inversion: words that a file teaches the text encoders (Gal et al., arXiv:2208.01618)."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_edge.arrays import FloatArray


@dataclass(frozen=True)
class Embedding:
    """One word and the vectors that stand for it.

    Attributes:
        name: what a prompt calls it.
        vectors: component (`text_encoder`, `text_encoder_2`) -> [n, dim] float32; n vectors take n token places.
    """

    name: str
    vectors: Mapping[str, FloatArray]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.vectors.values())
