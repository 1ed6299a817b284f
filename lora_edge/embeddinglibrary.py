"""A folder of textual inversion files, in the layout that people keep them in: `embeddings` with subfolders."""

from collections.abc import Mapping
from pathlib import Path

from lora_edge.adapterfile import version
from lora_edge.embedding import Embedding
from lora_edge.embeddingfile import read_embeddings
from lora_edge.errors import AdapterError, AdapterMismatch
from lora_edge.library import SUFFIX, Library

Version = tuple[Path, int, int]
Read = tuple[Embedding, ...] | AdapterError


class EmbeddingLibrary:
    """The words that a folder teaches; it follows the folder's changes, and reads a file once per version.

    Attributes:
        folder: where the files lie.
        unreadable: (path, why) of every file that gives no word, as of the last `all()`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.unreadable: tuple[tuple[Path, AdapterError], ...] = ()
        self._library = Library(folder)
        self._kept: dict[Version, Read] = {}

    def all(self) -> dict[str, Embedding]:
        """Word -> its vectors, of every file that can be read; the others are in `unreadable`.

        A word that two files teach is the first one's, by path, and the other is unreadable. A pickle is, too, unless
        its safetensors lies beside it.

        Raises:
            AdapterNotFound: the folder is missing.
        """
        words: dict[str, Embedding] = {}
        owners: dict[str, Path] = {}
        wrong: list[tuple[Path, AdapterError]] = []
        kept: dict[Version, Read] = {}
        for path in sorted(entry.path for entry in self._library.entries()):
            if path.suffix.lower() != SUFFIX and path.with_suffix(SUFFIX).is_file():
                continue
            read = self._read(path, kept)
            if isinstance(read, AdapterError):
                wrong.append((path, read))
                continue
            for embedding in read:
                if embedding.name in words:
                    wrong.append((path, _taken(embedding.name, path, owners)))
                    continue
                words[embedding.name], owners[embedding.name] = embedding, path
        self.unreadable, self._kept = tuple(wrong), kept
        return words

    def _read(self, path: Path, kept: dict[Version, Read]) -> Read:
        try:
            key = version(path)
            kept[key] = self._kept[key] if key in self._kept else _outcome(path)
            return kept[key]
        except AdapterError as error:  # it went away since the folder was read
            return error


def _outcome(path: Path) -> Read:
    try:
        return read_embeddings(path)
    except AdapterError as error:
        return error


def _taken(word: str, path: Path, owners: Mapping[str, Path]) -> AdapterError:
    return AdapterMismatch(f"{path} teaches {word!r}, as {owners[word]} does, which is used; rename one of them")
