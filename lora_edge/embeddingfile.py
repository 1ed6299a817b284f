"""Textual inversion files -> words and their vectors.

What people have: AUTOMATIC1111's (`emb_params`, or one tensor of any name; `string_to_param.*` once `lora-edge
convert` has unpickled it), where the file's own name is the word; diffusers' `learned_embeds` (token -> vectors), where
the token is; SDXL's `clip_l` with `clip_g`; and those bundled with a LoRA as `bundle_emb.<word>.<any of these>`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.embedding import Embedding
from lora_edge.errors import AdapterMismatch, AdapterValueError, UnknownKind
from lora_edge.kinds import is_adapter_leaf, split
from lora_edge.tensorfile import TensorFile

BUNDLED = "bundle_emb."
PARAMETER = "string_to_param."
IDS = "string_to_token."  # ids in the tokenizer of whoever trained it; they mean nothing to a file's reader
DIFFUSERS_STEM = "learned_embeds"
NAMELESS = ("emb_params", "*", "tensor")  # names of tensors that no prompt calls
MAX_VECTORS = 1000  # of one word; a tokenizer's own table has tens of thousands

COMPONENTS: Mapping[str, str] = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
WIDTHS: Mapping[int, str] = {768: "SD1", 1024: "SD2", 1280: "SDXL"}


def is_embedding(names: Iterable[str], shape: Callable[[str], tuple[int, ...]]) -> bool:
    """Whether a header is that of a textual inversion file.

    Args:
        names: of the tensors.
        shape: name -> shape.
    """
    words = dict(found := _words(names))
    shapes = {shape(name) for name in words.values()}
    if not words or len(words) < len(found) or any(is_adapter_leaf(split(name)[1]) for name in words.values()):
        return False
    if not all(len(axes) in (1, 2) and 0 not in axes and axes[:-1] <= (MAX_VECTORS,) for axes in shapes):
        return False
    if _is_one(words):
        return True
    alike = len({(len(axes), axes[-1]) for axes in shapes}) == 1
    return alike and not any("." in word or word in COMPONENTS for word in words)


def read_embeddings(path: str | Path) -> tuple[Embedding, ...]:
    """Every word of a textual inversion file.

    A word is called as the file is. In a file of diffusers (`learned_embeds*`), or of several words, it is called as
    its token; a token in angle brackets is a name besides the file's.

    Raises:
        AdapterFileDamaged: not a readable safetensors file; a pickle must go through `lora-edge convert`.
        UnknownKind: it holds something else.
        AdapterMismatch: vectors of another shape than [width] or [n, width], or of different n for two text encoders.
        AdapterValueError: numbers that are not finite.
    """
    path = Path(path)
    file = TensorFile.open(path)
    if not is_embedding(file.names, file.shape):
        first = ", ".join(map(repr, file.names[:3]))
        raise UnknownKind(f"{path} is no textual inversion: it holds {first or 'nothing'}")
    words = dict(_words(file.names))
    if _is_one(words):
        vectors = _vectors(file, [*words.items()])
        return tuple(Embedding(_checked(name, path), vectors) for name in _names(path.stem, next(iter(words))))
    return tuple(Embedding(_checked(word, path), _vectors(file, [(word, name)])) for word, name in words.items())


def bundled_embeddings(file: TensorFile, names: Sequence[str], path: Path) -> tuple[Embedding, ...]:
    """The words that an adapter file brings with it.

    Args:
        file: the open file.
        names: those of its tensors that begin with `bundle_emb.`; a word ends at the next dot.
        path: what a refusal calls the file.

    Raises:
        as `read_embeddings`, but for UnknownKind.
    """
    grouped: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        word, _, key = name.removeprefix(BUNDLED).partition(".")
        grouped.setdefault(word, []).extend((short, name) for short, _ in _words([key]))
    return tuple(Embedding(_checked(word, path), _vectors(file, keys)) for word, keys in grouped.items())


def check_width(embedding: Embedding, widths: Mapping[str, int]) -> None:
    """Refuse a word that was made for other text encoders.

    Args:
        embedding: the word.
        widths: component -> width of its token embeddings, for every text encoder of a bundle.

    Raises:
        AdapterMismatch: another width, or another set of text encoders.
    """
    has = {component: array.shape[1] for component, array in embedding.vectors.items()}
    for component in sorted({*has, *widths}):
        if has.get(component) == widths.get(component):
            continue
        theirs = f"{component} has width {widths[component]}" if component in widths else f"bundle has no {component}"
        ours = f"this bundle's {theirs}" if component in widths else f"this {theirs}"
        raise AdapterMismatch(f"the embedding {embedding.name!r} was made for {_made_for(has, component)}, {ours}")


def _made_for(has: Mapping[str, int], component: str) -> str:
    width = has.get(component)
    family = "SDXL" if len(has) > 1 else WIDTHS.get(width or next(iter(has.values())))
    about = f"width {width}" if width else f"nothing for {component}"
    return f"{family} ({about})" if family else f"another model ({about})"


def _words(names: Iterable[str]) -> list[tuple[str, str]]:
    """(the word, as far as the name of its tensor says it, that name)."""
    return [(name.removeprefix(PARAMETER), name) for name in names if not name.startswith(IDS)]


def _is_one(words: Mapping[str, str]) -> bool:
    """Whether the tensors are those of one word."""
    return len(words) == 1 or words.keys() <= COMPONENTS.keys()


def _names(stem: str, token: str) -> list[str]:
    """What a prompt calls the one word of a file."""
    if token in NAMELESS or token in COMPONENTS:
        return [stem]
    if stem.startswith(DIFFUSERS_STEM):
        return [token]
    return list(dict.fromkeys([stem, token])) if token.startswith("<") and token.endswith(">") else [stem]


def _checked(word: str, path: Path) -> str:
    if not word.strip() or not word.isprintable():
        raise AdapterMismatch(f"{path} teaches the word {word!r}, which no prompt can spell; rename it")
    return word


def _vectors(file: TensorFile, keys: Sequence[tuple[str, str]]) -> dict[str, FloatArray]:
    """Component -> [n, width] float32 of the tensors of one word, given as (key, name)."""
    made: dict[str, FloatArray] = {}
    for key, name in keys:
        component = COMPONENTS.get(key, "text_encoder")
        if component in made:
            raise AdapterMismatch(
                f"{file.path} gives the {component} two sets of vectors for one word, one as {name!r}"
            )
        made[component] = _read(file, name)
    if len({len(array) for array in made.values()}) != 1:
        counts = ", ".join(f"{component} {len(array)}" for component, array in made.items())
        raise AdapterMismatch(f"{file.path} has different numbers of vectors for one word: {counts or 'none at all'}")
    return made


def _read(file: TensorFile, name: str) -> FloatArray:
    shape, dtype = file.shape(name), file.dtype(name)
    if len(shape) not in (1, 2) or 0 in shape or "F" not in dtype or shape[:-1] > (MAX_VECTORS,):
        bound = f"a word is at most {MAX_VECTORS} vectors of floats"
        raise AdapterMismatch(f"{file.path} has {name!r} of shape {list(shape)} in {dtype}; {bound}")
    array: FloatArray = file.read(name).reshape(-1, shape[-1])
    if not np.isfinite(array).all():
        raise AdapterValueError(f"{file.path} holds numbers that are not finite in {name!r}; the file is broken")
    return array
