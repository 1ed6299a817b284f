"""Any adapter for a bundle: a pack, one of ONNX Runtime's, or a file or folder as trainers write them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.bundle import Bundle
from lora_edge.errors import AdapterError
from lora_edge.ortadapter import read_onnx_adapter
from lora_edge.ortfile import is_ort_adapter
from lora_edge.pack import is_pack, read_pack
from lora_edge.tensorfile import read_strings

Read = Callable[[Path, Bundle, str | None, bool, int | None], Adapter]
"""(path, bundle, component, strict, max_bytes) -> the adapter."""


@dataclass(frozen=True)
class Reader:
    """One form that adapters come in.

    Attributes:
        claims: whether a file or folder is of this form, by looking at its first bytes; no two forms agree on one.
        read: makes the adapter in memory of its own.
        mapped: makes it of arrays that lie in the file; None for forms that are always read.
    """

    claims: Callable[[Path], bool]
    read: Read
    mapped: Read | None = None


def open_adapter(
    path: str | Path,
    bundle: Bundle,
    component: str | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
    map_packs: bool = False,
) -> Adapter:
    """Read an adapter of whatever form for a bundle.

    Args:
        path: a file or folder.
        bundle: what it is to be used with.
        component: the only component to change; needed where the names in the file fit several.
        strict: refuse a file of which any tensor would go unused; otherwise see `Adapter.report`.
        max_bytes: the most that the adapter may take in memory; None for no limit.
        map_packs: use float32 packs where they lie, see `read_pack`.

    Raises:
        AdapterError: missing, damaged, not finite, or made for another base or bundle.
        ComponentMissing: the bundle has no such component.
    """
    path = Path(path)
    reader = next((reader for reader in READERS if reader.claims(path)), PLAIN)
    read = (map_packs and reader.mapped) or reader.read
    return read(path, bundle, component, strict, max_bytes)


def _is_pack_file(path: Path) -> bool:
    try:
        return path.is_file() and is_pack(read_strings(path))
    except AdapterError:
        return False  # what is wrong with it is for its own reader to say


def _plain(path: Path, bundle: Bundle, component: str | None, strict: bool, max_bytes: int | None) -> Adapter:
    return read_adapter(path).fit(bundle.tables, component, strict, bundle, max_bytes)


PLAIN = Reader(lambda path: True, _plain)
READERS = (
    Reader(_is_pack_file, read_pack, partial(read_pack, in_place=True)),
    Reader(is_ort_adapter, read_onnx_adapter),
)
