"""What is wrong with textual inversion files, and with words that come with an adapter."""

from dataclasses import replace

import numpy as np

from lora_edge.embedding import Embedding
from lora_edge.embeddingfile import check_width, read_embeddings

from .case import MISMATCH, UNKNOWN, VALUE, Case, Tensors, opened, pair

BUNDLED = "bundle_emb.cat"
WIDTHS = {"text_encoder": 16}


def _words(name: str, tensors: Tensors, error: type, sentence: str) -> Case:
    return Case(name, lambda desk: read_embeddings(desk.save(tensors)), error, sentence)


def _bundled(name: str, tensors: Tensors, sentence: str) -> Case:
    whole = rf"{{file}}: \d of \d modules cannot be used: '.*' {sentence}.*"
    return replace(opened(name, pair() | dict(tensors), MISMATCH, whole), misfits=tensors)


def _width(name: str, vectors: dict[str, int], sentence: str) -> Case:
    made = {component: np.zeros((1, width), np.float32) for component, width in vectors.items()}
    return Case(name, lambda desk: check_width(Embedding("cat", made), WIDTHS), MISMATCH, sentence)


CASES = (
    _words("no word", {}, UNKNOWN, "{file} is no textual inversion: it holds nothing"),
    _words(
        "an adapter for a word",
        pair(),
        UNKNOWN,
        r"{file} is no textual inversion: it holds 'lora_.*', 'lora_.*'",
    ),
    _words(
        "a word that nobody can spell",
        {"a\nb": (1, 16), "c": (1, 16)},
        MISMATCH,
        r"{file} teaches the word 'a\\nb', which no prompt can spell; rename it",
    ),
    _words(
        "integers for vectors",
        {"emb_params": np.zeros((1, 16), np.int64)},
        MISMATCH,
        r"{file} has 'emb_params' of shape \[1, 16\] in I64; a word is at most 1000 vectors of floats",
    ),
    _words(
        "a vector that is not finite",
        {"emb_params": np.full((1, 16), np.nan, np.float32)},
        VALUE,
        "{file} holds numbers that are not finite in 'emb_params'; the file is broken",
    ),
    _words(
        "different numbers of vectors",
        {"clip_l": (1, 16), "clip_g": (2, 32)},
        MISMATCH,
        r"{file} has different numbers of vectors for one word: text_encoder(_2)? [12], text_encoder(_2)? [12]",
    ),
    _bundled(
        "two sets of vectors",
        {f"{BUNDLED}.clip_l": (1, 16), f"{BUNDLED}.emb_params": (1, 16)},
        r"{file} gives the text_encoder two sets of vectors for one word, one as 'bundle_emb\..*'",
    ),
    _bundled(
        "no vectors but ids",
        {f"{BUNDLED}.string_to_token.x": np.zeros(1, np.int64)},
        "{file} has different numbers of vectors for one word: none at all",
    ),
    _bundled(
        "a vector of three axes",
        {f"{BUNDLED}.emb_params": (1, 2, 16)},
        r"{file} has .* of shape \[1, 2, 16\] in F32; .*",
    ),
    _bundled(
        "a word without letters",
        {"bundle_emb. .emb_params": (1, 16)},
        r"{file} teaches the word ' ', which no prompt .*",
    ),
    opened(
        "a bundled vector that is not finite",
        pair() | {f"{BUNDLED}.emb_params": np.full((1, 16), np.inf, np.float32)},
        VALUE,
        "{file} holds numbers that are not finite in 'bundle_emb.cat.emb_params'; the file is broken",
    ),
    _width(
        "another width",
        {"text_encoder": 768},
        r"the embedding 'cat' was made for SD1 \(width 768\), this bundle's text_encoder has width 16",
    ),
    _width(
        "another set of text encoders",
        {"text_encoder": 16, "text_encoder_2": 1280},
        r"the embedding 'cat' was made for SDXL \(width 1280\), this bundle has no text_encoder_2",
    ),
)
