"""CLIP's tokenizer: text -> ids, equal to transformers' `CLIPTokenizer`, through the `tokenizers` library alone.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020: lower case,
words cut by a pattern, byte-level BPE whose last piece of a word ends in `</w>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lora_edge.arrays import IntArray
from lora_edge.errors import BundleDamaged, RequestError
from lora_edge.jsonfile import read_object

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_LENGTH = 77

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULTS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and to what a text encoder takes.

    Attributes:
        max_length: ids that the text encoder reads, start and end included.
        start, end, pad: ids of the three tokens that frame a text.
    """

    backend: Backend
    max_length: int
    start: int
    end: int
    pad: int

    @classmethod
    def open(cls, folder: str | Path) -> "Tokenizer":
        """Reads a tokenizer folder of a Stable Diffusion pipeline.

        Args:
            folder: has `vocab.json` and `merges.txt`, or else `tokenizer.json`; `tokenizer_config.json` and
                `special_tokens_map.json` say the special tokens and `model_max_length`, else they are CLIP's.

        Raises:
            BundleDamaged: a file is missing or broken, or of another kind of tokenizer.
        """
        folder = Path(folder)
        settings = _settings(folder)
        vocab, merges = _vocabulary(folder)
        named = {name: settings.get(name) or _DEFAULTS.get(name) for name in _NAMED}
        try:
            backend = _backend(vocab, merges, _text(named["unk_token"]))
            # In the order of transformers, which settles which flags a token has that is named twice.
            backend.add_tokens(settings["added"])
            flagged = {token.content: token for token in settings["added"]}
            special = [_special(token, flagged) for token in [*named.values(), *settings["more"]] if token]
            backend.add_tokens(special)
            backend.add_special_tokens(special)
        except Exception as error:  # the library raises nothing more precise
            raise BundleDamaged(f"the tokenizer in {folder} cannot be built: {error}") from error
        ids = backend.get_vocab()
        start, end, pad = (ids[_text(named[name])] for name in ("bos_token", "eos_token", "pad_token"))
        return cls(backend, _length(settings, folder), start, end, pad)

    def encode(self, text: str) -> list[int]:
        """All ids of a text, without start, end and padding.

        Raises:
            RequestError: the text is not valid Unicode.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError("the prompt is not valid Unicode: it has half of a surrogate pair") from error
        return ids

    def framed(self, ids: Sequence[int]) -> IntArray:
        """Ids between start and end, padded: [1, max_length] int64.

        Raises:
            RequestError: the ids do not fit.
        """
        if len(ids) > self.max_length - 2:
            raise RequestError(f"{len(ids)} tokens do not fit: the text encoder reads {self.max_length - 2}")
        framed = np.full((1, self.max_length), self.pad, np.int64)
        framed[0, : len(ids) + 2] = [self.start, *ids, self.end]
        return framed


def _backend(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], unknown: str) -> Backend:
    bpe = models.BPE(
        vocab=dict(vocab),
        merges=list(merges),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token=unknown,
    )
    backend = Backend(bpe)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _vocabulary(folder: Path) -> tuple[Mapping[str, int], Sequence[tuple[str, str]]]:
    """Ids of the pieces, and which pairs of pieces join, in order."""
    vocab, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    try:
        if whole.exists() and not (vocab.exists() and merges.exists()):
            model = _json(whole)["model"]
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            return model["vocab"], [(first, second) for first, second in pairs]
        for path in (vocab, merges):
            if not path.exists():
                raise BundleDamaged(f"the tokenizer has no {path.name} in {folder}")
        pieces, joined = models.BPE.read_file(str(vocab), str(merges))
        return pieces, joined
    except BundleDamaged:
        raise
    except Exception as error:  # the library raises nothing more precise
        raise BundleDamaged(f"the vocabulary of the tokenizer in {folder} cannot be read: {error}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """The tokenizer's configuration; `added` and `more` are the tokens beside the vocabulary and the named ones."""
    settings = _json(folder / "tokenizer_config.json", optional=True)
    kind = settings.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise BundleDamaged(f"the tokenizer in {folder} is a {kind}; only CLIP's is supported")
    if "added_tokens_decoder" not in settings:
        settings |= _json(folder / "special_tokens_map.json", optional=True)
    added = [*settings.get("added_tokens_decoder", {}).items()] or [
        (token.pop("id"), token) for token in _json(folder / "tokenizer.json", optional=True).get("added_tokens", [])
    ]
    older = _json(folder / "added_tokens.json", optional=True) if not added else {}
    names = {_text(settings.get(name)) for name in _NAMED}
    for text, number in older.items():
        added.append((number, {"content": text, "normalized": text not in names, "special": text in names}))
    return {
        **settings,
        "added": [AddedToken(**_flags(token)) for _, token in sorted(added, key=lambda pair: int(pair[0]))],
        "more": settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or [],
    }


def _length(settings: Mapping[str, Any], folder: Path) -> int:
    length = settings.get("model_max_length", CLIP_LENGTH)
    if not isinstance(length, int | float) or length < 3:
        raise BundleDamaged(f"model_max_length of the tokenizer in {folder} is {length!r}; it must be a number above 2")
    # Configurations that set no limit say 1e30.
    return int(length) if length < 1e6 else CLIP_LENGTH


def _json(path: Path, optional: bool = False) -> dict[str, Any]:
    return read_object(path, BundleDamaged, optional)


def _text(token: Any) -> str:
    """A token in a configuration is a string or a record of string and flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _special(token: Any, flagged: Mapping[str, AddedToken]) -> AddedToken:
    if _text(token) in flagged:
        return flagged[_text(token)]
    if isinstance(token, dict):
        return AddedToken(**{**_flags(token), "special": True})
    return AddedToken(str(token), special=True, normalized=False)


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key != "__type"}
