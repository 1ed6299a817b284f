"""A folder of adapters, in the layout that people keep them in: `models/Lora` with subfolders.

Names are looked up in an index of what the folder holds and never joined to a path, so that no name can leave it.
"""

import difflib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lora_edge.adapterfile import folder_weights, version
from lora_edge.errors import AdapterError, AdapterNotFound
from lora_edge.tensorfile import data_sha256, read_header

SUFFIX = ".safetensors"
ALIAS_KEY = "ss_output_name"
NEAR = 3  # names that a refusal suggests

Stamp = tuple[tuple[Path, int], ...]  # folder, time of its last change in ns


class Library:
    """An index of a folder; it follows the folder's changes.

    Attributes:
        folder: where the adapters lie.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._stamp: Stamp | None = None
        self._paths: dict[str, list[Path]] = {}

    def find(self, name: str) -> Path:
        """The adapter that a prompt calls `name`: a file's stem, a PEFT folder's name, else a file's own alias.

        Where a stem occurs in several subfolders, `subfolder/stem` says which.

        Raises:
            AdapterNotFound: there is none of that name, or there are several; the folder itself is missing.
        """
        if self._changed() or name not in self._paths:
            self._scan()
        found = self._paths.get(name) or self._aliases().get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            where = " or ".join(str(path.relative_to(self.folder)) for path in found)
            raise AdapterNotFound(f"{name!r} may be any of {where} in {self.folder}; rename all but one")
        near = difflib.get_close_matches(name, self._paths, NEAR)
        hint = f"; is it {' or '.join(map(repr, near))}?" if near else ""
        raise AdapterNotFound(f"there is no adapter {name!r} in {self.folder}{hint}")

    def names(self) -> tuple[str, ...]:
        """The stems and folder names, sorted.

        Raises:
            AdapterNotFound: the folder is missing.
        """
        if self._changed():
            self._scan()
        return tuple(sorted({_name(path) for paths in self._paths.values() for path in paths}))

    def _changed(self) -> bool:
        """Whether an entry came or went since the scan: both change the time of the folder that holds it."""
        if self._stamp is None:
            return True
        try:
            return any(folder.stat().st_mtime_ns != time for folder, time in self._stamp)
        except OSError:
            return True

    def _scan(self) -> None:
        if not self.folder.is_dir():
            raise AdapterNotFound(f"the adapter folder {self.folder} does not exist")
        stamp: list[tuple[Path, int]] = []
        paths: dict[str, list[Path]] = {}
        try:
            for path in _adapters(self.folder, self.folder.resolve(), stamp, set()):
                inner = path.relative_to(self.folder).with_name(_name(path)).as_posix()
                for name in {_name(path), inner}:
                    paths.setdefault(name, []).append(path)
        except OSError as reason:
            raise AdapterNotFound(f"the adapter folder {self.folder} cannot be read: {reason}") from reason
        self._stamp, self._paths = tuple(stamp), paths

    def _aliases(self) -> dict[str, list[Path]]:
        """Alias -> files, from the headers; asked for only when a name is no file's."""
        made: dict[str, list[Path]] = {}
        for path in sorted({path for paths in self._paths.values() for path in paths}):
            if alias := _alias(*version(path)):
                made.setdefault(alias, []).append(path)
        return made


def short_hash(path: str | Path) -> str:
    """The first 12 hex digits of the sha256 of a file's tensor data, as AUTOMATIC1111 shows it; kept per version.

    Raises:
        AdapterNotFound: nothing is there.
        AdapterFileDamaged: no readable safetensors file.
    """
    return _data_hash(*version(Path(path)))[:12]


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _adapters(folder: Path, root: Path, stamp: list[tuple[Path, int]], seen: set[Path]) -> Iterator[Path]:
    """Every adapter under a folder; links that leave the root, and folders seen before, are passed over."""
    real = folder.resolve()
    if real in seen or not real.is_relative_to(root):
        return
    seen.add(real)
    stamp.append((folder, folder.stat().st_mtime_ns))
    weights = folder_weights(folder) if folder.resolve() != root else None
    if _inside(weights, root):
        yield folder
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _adapters(path, root, stamp, seen)
        elif path.suffix.lower() == SUFFIX and _inside(path, root) and path != weights:
            yield path


def _inside(path: Path | None, root: Path) -> bool:
    return path is not None and path.is_file() and path.resolve().is_relative_to(root)


@lru_cache(maxsize=4096)
def _alias(path: Path, time: int, size: int) -> str | None:
    try:
        return read_header(path).metadata.get(ALIAS_KEY)
    except AdapterError:
        return None  # said when the file itself is asked for


@lru_cache(maxsize=4096)
def _data_hash(path: Path, time: int, size: int) -> str:
    return data_sha256(path)
