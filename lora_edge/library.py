"""A folder of adapters, in the layout that people keep them in: `models/Lora` with subfolders.

Names are looked up in an index of what the folder holds and never joined to a path, so that no name can leave it.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_edge.adapterfile import FOLDER_PICKLES, folder_weights, version
from lora_edge.errors import AdapterError, AdapterNotFound
from lora_edge.packhead import KEY as PACK_KEY
from lora_edge.tensorfile import data_sha256, read_header

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # listed, so that nobody misses them, and never opened
ALIAS_KEY = "ss_output_name"
FORBIDDEN = ("none", "addams")  # aliases that AUTOMATIC1111 gives another meaning, in small letters
NEAR = 3  # names that a refusal suggests

_SAYABLE = re.compile(r"[^\x00-\x1f\x7f<>:]{1,255}")  # what a tag in a prompt can spell

Stamp = tuple[tuple[Path, int], ...]  # folder, time of its last change in ns


@dataclass(frozen=True)
class Entry:
    """One thing that lies in the folder.

    Attributes:
        name: what a prompt calls it: its stem, or `subfolder/stem` where several have that stem.
        path: where it is; a pickle, too, which nothing but `lora-edge convert` opens.
        alias: its other name, None where it has none or where that is somebody else's as well.
    """

    name: str
    path: Path
    alias: str | None = None


class Library:
    """An index of a folder; it follows the folder's changes.

    Attributes:
        folder: where the adapters lie.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._stamp: Stamp | None = None
        self._paths: dict[str, list[Path]] = {}
        self._pickles: dict[str, list[Path]] = {}

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
        if name in self._pickles:
            pickle = self._pickles[name][0].relative_to(self.folder)
            raise AdapterNotFound(f"{name!r} is the pickle {pickle} in {self.folder}; run `lora-edge convert` on it")
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
        return tuple(sorted({_name(path) for path in self._adapters()}))

    def entries(self) -> tuple[Entry, ...]:
        """Everything in the folder, sorted by name, pickles included.

        Raises:
            AdapterNotFound: the folder is missing.
        """
        if self._changed():
            self._scan()
        aliases = {paths[0]: alias for alias, paths in self._aliases().items()
                   if len(paths) == 1 and alias not in self._paths}  # fmt: skip
        made = [Entry(self._own_name(path), path, aliases.get(path)) for path in self._adapters()]
        pickles = {path for paths in self._pickles.values() for path in paths}
        return tuple(sorted([*made, *(Entry(_name(path), path) for path in pickles)], key=lambda item: item.name))

    def _adapters(self) -> set[Path]:
        return {path for paths in self._paths.values() for path in paths}

    def _own_name(self, path: Path) -> str:
        name = _name(path)
        return name if len(self._paths[name]) == 1 else _inner(path, self.folder)

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
        pickles: dict[str, list[Path]] = {}
        try:
            for path in _adapters(self.folder, self.folder.resolve(), stamp, set()):
                kept = pickles if path.suffix.lower() in PICKLES and path.is_file() else paths
                for name in {_name(path), _inner(path, self.folder)}:
                    kept.setdefault(name, []).append(path)
        except OSError as reason:
            raise AdapterNotFound(f"the adapter folder {self.folder} cannot be read: {reason}") from reason
        self._stamp, self._paths, self._pickles = tuple(stamp), paths, pickles

    def _aliases(self) -> dict[str, list[Path]]:
        """Alias -> files, from the headers; asked for only when a name is no file's."""
        made: dict[str, list[Path]] = {}
        for path in sorted(self._adapters()):
            alias = _alias(*version(path))
            if alias and alias.lower() not in FORBIDDEN and _SAYABLE.fullmatch(alias):
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
    """The stem of a file; the folder's name where PEFT and diffusers give every file the same one."""
    if path.name in FOLDER_PICKLES:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _inner(path: Path, folder: Path) -> str:
    """The name with the subfolders before it."""
    return path.relative_to(folder).with_name(_name(path)).as_posix()


def _adapters(folder: Path, root: Path, stamp: list[tuple[Path, int]], seen: set[Path]) -> Iterator[Path]:
    """Every adapter under a folder; links that leave the root, and folders seen before, are passed over."""
    real = folder.resolve()
    if real in seen or not real.is_relative_to(root):
        return
    seen.add(real)
    stamp.append((folder, folder.stat().st_mtime_ns))
    weights = folder_weights(folder) if folder.resolve() != root else None
    # Beside an adapter's own weights lie a trainer's pickles, of its optimizer and the like.
    wanted = (SUFFIX,) if weights else (SUFFIX, *PICKLES)
    if _inside(weights, root):
        yield folder
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _adapters(path, root, stamp, seen)
        elif path.suffix.lower() in wanted and _inside(path, root) and path != weights:
            yield path


def _inside(path: Path | None, root: Path) -> bool:
    return path is not None and path.is_file() and path.resolve().is_relative_to(root)


@lru_cache(maxsize=4096)
def _alias(path: Path, time: int, size: int) -> str | None:
    """What a file calls itself. A pack goes by its file's name before `.pack`: its other strings are the original's."""
    try:
        metadata = read_header(path).metadata
    except AdapterError:
        return None  # said when the file itself is asked for
    return path.stem.removesuffix(".pack") if PACK_KEY in metadata else metadata.get(ALIAS_KEY)


@lru_cache(maxsize=4096)
def _data_hash(path: Path, time: int, size: int) -> str:
    return data_sha256(path)
