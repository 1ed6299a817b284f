"""Chunks of long prompts; expected counts are written by hand from the rules of AUTOMATIC1111's tokenize_line."""

from pathlib import Path

import numpy as np
import pytest

from lora_edge.embedding import Embedding
from lora_edge.errors import RequestError
from lora_edge.prompt import Span
from lora_edge.runtime.chunks import Chunk, chunked
from lora_edge.runtime.conditioning import emphasized
from lora_edge.runtime.tokenizer import Tokenizer
from lora_edge.runtime.words import Words

VOCABULARY = 514


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.open(tiny_model / "tokenizer")


@pytest.fixture
def words(tokenizer: Tokenizer) -> Words:
    taught = {
        name: Embedding(name, {"text_encoder": np.full((many, 8), many, np.float32)})
        for name, many in {"cat": 3, "cats": 2, "long": 76, "full": 75}.items()
    }
    taught["xl"] = Embedding("xl", {"text_encoder_2": np.ones((1, 8), np.float32)})
    return Words(tokenizer, "text_encoder", VOCABULARY, 8, taught)


def letters(count: int) -> str:
    """So many tokens: the vocabulary of the tests has letters alone."""
    return "z " * count


def lengths(chunks: list[Chunk]) -> list[int]:
    assert all(len(chunk.ids) == len(chunk.weights) for chunk in chunks)
    return [len(chunk.ids) for chunk in chunks]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        (letters(1), [1]),
        (letters(75), [75]),
        (letters(76), [75, 1]),
        (letters(200), [75, 75, 50]),
        (letters(70) + "," + letters(10), [71, 10]),  # back to the comma
        (letters(55) + "," + letters(30), [56, 30]),  # 20 behind it, just near enough
        (letters(54) + "," + letters(30), [75, 10]),  # 21 behind it, too far
        (letters(74) + "," + letters(5), [75, 5]),
        (letters(75) + "," + letters(5), [75, 6]),
        (letters(60) + "," + letters(5) + "," + letters(20), [67, 20]),  # the last comma counts
        (letters(70) + "," + letters(74), [71, 74]),
        (letters(70) + "," + letters(80), [71, 75, 5]),  # no comma in the second chunk
    ],
)
def test_where_chunks_end(words: Words, text: str, expected: list[int]) -> None:
    assert lengths(chunked([[Span(text, 1.0)]], words)) == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["a", "b c"], [1, 2]),
        (["", "b"], [0, 1]),
        (["a", ""], [1]),
        (["a", "", "b"], [1, 0, 1]),
        ([letters(80), "b"], [75, 5, 1]),
    ],
)
def test_break_ends_a_chunk(words: Words, groups: list[str], expected: list[int]) -> None:
    assert lengths(chunked([[Span(text, 1.0)] for text in groups], words)) == expected


def test_emphasis_stays_with_its_tokens(words: Words) -> None:
    (chunk,) = chunked([[Span("a b", 1.0), Span("c", 1.3), Span("d", 0.5)]], words)
    assert chunk.weights == (1.0, 1.0, 1.3, 0.5)
    first, second = chunked([[Span(letters(73) + ", a", 1.0), Span("b c", 2.0)]], words)
    assert first.weights == (1.0,) * 74 and second.weights == (1.0, 2.0, 2.0), "what moves keeps its weight"


def test_embeddings_take_the_place_of_their_names(words: Words) -> None:
    (chunk,) = chunked([[Span("a cats b cat", 1.0)]], words)
    added = [id_ - VOCABULARY for id_ in chunk.ids if id_ >= VOCABULARY]
    assert added == [0, 1, 2, 3, 4] and len(chunk.ids) == 7, "the longest name wins: cats, then cat"
    assert words.used == ("cats", "cat") and words.tokens[:, 0].tolist() == [2, 2, 3, 3, 3]
    again = chunked([[Span("cat", 1.5)]], words)
    assert again == [Chunk((VOCABULARY + 2, VOCABULARY + 3, VOCABULARY + 4), (1.5,) * 3)]


def test_embeddings_are_never_cut(words: Words) -> None:
    assert lengths(chunked([[Span(letters(73) + "cat z", 1.0)]], words)) == [73, 4]
    assert lengths(chunked([[Span("z full z", 1.0)]], words)) == [1, 75, 1]
    with pytest.raises(RequestError, match="embedding of 76 vectors does not fit; a prompt takes 75"):
        chunked([[Span("long", 1.0)]], words)


def test_an_embedding_of_another_text_encoder_is_refused(words: Words) -> None:
    with pytest.raises(RequestError, match="'xl' has width text_encoder_2 8; text_encoder has width 8"):
        chunked([[Span("xl", 1.0)]], words)


def test_emphasis_keeps_the_mean() -> None:
    state = np.random.default_rng(0).standard_normal((77, 8)).astype(np.float32) + 0.5
    weights = (1.0, 1.3, 0.7)
    column = np.array([1, *weights, *[1] * 73])[:, None]
    expected = state.astype(np.float64) * column
    expected *= state.astype(np.float64).mean() / expected.mean()
    made = emphasized(state, weights)
    np.testing.assert_allclose(made, expected, rtol=1e-6)
    assert emphasized(state, (1.0, 1.0)) is state
