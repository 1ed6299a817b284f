"""The files that people keep beside an adapter: A1111's `.json`, civitai's `.civitai.info`, texts and pictures.

They come from strangers: each is read up to a bound, and what has another type than it should have is left out with a
note; nothing in them is ever refused.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MAX_BYTES = 4 << 20  # of one such file; civitai's hold the descriptions and pictures' settings of all versions
MAX_TEXT = 10_000  # letters of one text
MAX_WORDS = 100

# AUTOMATIC1111, modules/ui_extra_networks.py, find_preview and find_description: the first that is there.
PREVIEWS = tuple(
    f"{middle}.{ending}" for ending in ("png", "jpg", "jpeg", "webp", "gif") for middle in ("", ".preview")
)
DESCRIPTIONS = (".txt", ".description.txt")
USER, CIVITAI = ".json", ".civitai.info"
PACK = ".pack"
UNKNOWN = "Unknown"  # the "sd version" that A1111 writes where the user chose none


@dataclass(frozen=True)
class Sidecar:
    """What lies beside an adapter.

    Attributes:
        words: that call its subject or style up: what the user noted, else what civitai lists.
        negative: text for the negative prompt.
        preferred: the multiplier that the user noted.
        base: the base model that the user, else civitai, names.
        title: its name on civitai.
        description, notes: of the user, or of the text file.
        preview: a picture, None where there is none.
        faults: a sentence for each thing that could not be read.
    """

    words: tuple[str, ...] = ()
    negative: str = ""
    preferred: float | None = None
    base: str = ""
    title: str = ""
    description: str = ""
    notes: str = ""
    preview: Path | None = None
    faults: tuple[str, ...] = ()


def read_sidecar(path: Path) -> Sidecar:
    """What lies beside an adapter file or folder; that of `ink.safetensors` holds for `ink.pack.safetensors` too."""
    stem = path.name if path.is_dir() else path.stem
    stems = dict.fromkeys((stem, stem.removesuffix(PACK)))
    reader = _Reader()
    user, civitai = (reader.read_object(_beside(path, stems, (ending,))) for ending in (USER, CIVITAI))
    model = reader.object_at(civitai, "model")
    listed = reader.texts(civitai, "trainedWords")
    base = reader.text(user, "sd version") or UNKNOWN
    text = _beside(path, stems, DESCRIPTIONS)
    return Sidecar(
        words=split_words([reader.text(user, "activation text")]) or split_words(listed),
        negative=reader.text(user, "negative text"),
        preferred=reader.number(user, "preferred weight") or None,  # 0 is how A1111 says that there is none
        base=base if base != UNKNOWN else reader.text(civitai, "baseModel"),
        title=reader.text(model, "name"),
        description=reader.text(user, "description") or reader.plain(text),
        notes=reader.text(user, "notes"),
        preview=_beside(path, stems, PREVIEWS),
        faults=tuple(reader.faults),
    )


def split_words(texts: list[str]) -> tuple[str, ...]:
    """The words and phrases between commas, each once, in order."""
    words = (word.strip() for text in texts for word in text.split(","))
    return tuple(dict.fromkeys(word for word in words if word))[:MAX_WORDS]


def _beside(path: Path, stems: Mapping[str, None], endings: tuple[str, ...]) -> Path | None:
    found = (path.with_name(stem + ending) for stem in stems for ending in endings)
    return next((file for file in found if file.is_file()), None)


@dataclass
class _Reader:
    """Reads what is of the right type and notes what is not."""

    faults: list[str] = field(default_factory=list)

    def read_bytes(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                read = file.read(MAX_BYTES + 1)
        except OSError as reason:
            return self._fault(f"{path.name} cannot be read: {reason.strerror or reason}", b"")
        return read if len(read) <= MAX_BYTES else self._fault(f"{path.name} is larger than {MAX_BYTES} bytes", b"")

    def plain(self, path: Path | None) -> str:
        return self.read_bytes(path).decode("utf-8", "replace")[:MAX_TEXT].strip() if path else ""

    def read_object(self, path: Path | None) -> Mapping[str, Any]:
        if path is None or not (read := self.read_bytes(path)):
            return {}
        try:
            made = json.loads(read)
        except (ValueError, RecursionError):
            return self._fault(f"{path.name} is not JSON", {})
        return made if isinstance(made, dict) else self._fault(f"{path.name} is not a JSON object", {})

    def object_at(self, item: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = item.get(key)
        return value if isinstance(value, dict) else self._wrong(item, key, {})

    def text(self, item: Mapping[str, Any], key: str) -> str:
        value = item.get(key)
        return value[:MAX_TEXT].strip() if isinstance(value, str) else self._wrong(item, key, "")

    def texts(self, item: Mapping[str, Any], key: str) -> list[str]:
        value = item.get(key)
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            return self._wrong(item, key, [])
        return [word[:MAX_TEXT] for word in value[:MAX_WORDS]]

    def number(self, item: Mapping[str, Any], key: str) -> float:
        value = item.get(key)
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        return number if math.isfinite(number) else self._wrong(item, key, 0.0)

    def _wrong(self, item: Mapping[str, Any], key: str, instead: T) -> T:
        """Nothing there is no fault."""
        if item.get(key) in (None, ""):
            return instead
        return self._fault(f"{key!r} beside it is of type {type(item[key]).__name__} and was left out", instead)

    def _fault(self, sentence: str, instead: T) -> T:
        self.faults.append(sentence)
        return instead
