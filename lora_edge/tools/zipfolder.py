"""The folder of a zip archive whose entries are stored as they are: where each begins and ends.

Read by itself (APPNOTE.TXT of PKWARE, 4.3) and not by `zipfile`, which trusts the folder before it can be bounded.
Nothing is decompressed, so an archive can hold no more than its own bytes.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lora_edge.tools.pickles import Wrong, quoted

MAX_FOLDER = 2**24  # bytes
MAX_ENTRIES = 50_000

END = struct.Struct("<4s4H2LH")  # its signature, disks, entries, folder's size and place, length of a comment
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
HUGE = 0xFFFFFFFF  # the number proper is in the 64-bit part
ENCRYPTED = 1


@dataclass(frozen=True)
class Span:
    """First byte, and the byte after the last, counted from the start of the file."""

    start: int
    end: int


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    header: int  # where its local header begins


def read_folder(data: mmap.mmap) -> dict[str, Span]:
    """Name -> bytes of every entry.

    Raises:
        Wrong: not a whole archive; an entry that is compressed, encrypted, named twice, outside the file, or that
            shares bytes with another.
    """
    places: dict[str, Span] = {}
    end = 0
    for entry in sorted(_entries(data), key=lambda entry: entry.header):
        span = _place(data, entry)
        if entry.name in places:
            raise Wrong(f"has the entry {quoted(entry.name)} twice")
        if entry.header < end:
            raise Wrong(f"has the entry {quoted(entry.name)} in the bytes of another")
        places[entry.name], end = span, span.end
    return places


def _folder(data: mmap.mmap) -> tuple[int, int]:
    """Where the list of entries begins and ends."""
    at = len(data) - END.size
    if at < 0 or data[at : at + 4] != b"PK\x05\x06":
        raise Wrong("is truncated or no archive of torch's: its last bytes are not the end of a zip folder")
    *_, size, start, _ = END.unpack_from(data, at)
    if HUGE in (size, start):
        at = _end64(data, at)
        *_, size, start = END64.unpack_from(data, at)
    if size > MAX_FOLDER or start + size > at:
        raise Wrong("has a zip folder that is too large or outside the file")
    return start, start + size


def _end64(data: mmap.mmap, end: int) -> int:
    """Where the 64-bit end of the folder begins."""
    locator = end - LOCATOR64.size
    if locator < 0 or data[locator : locator + 4] != b"PK\x06\x07":
        raise Wrong("has a zip folder that is too large or outside the file")
    _, _, at, _ = LOCATOR64.unpack_from(data, locator)
    if at + END64.size > locator or data[at : at + 4] != b"PK\x06\x06":
        raise Wrong("has a zip folder that is too large or outside the file")
    return int(at)


def _entries(data: mmap.mmap) -> Iterator[_Entry]:
    at, end = _folder(data)
    for _ in range(MAX_ENTRIES):
        if at == end:
            return
        if at + ENTRY.size > end:
            raise Wrong("has a damaged zip folder")
        magic, _, _, flags, method, *_, packed, size, named, extra, noted, _, _, _, header = ENTRY.unpack_from(data, at)
        rest = at + ENTRY.size
        at = rest + named + extra + noted
        if magic != b"PK\x01\x02" or at > end:
            raise Wrong("has a damaged zip folder")
        name = data[rest : rest + named].decode("utf-8", "replace")
        fields = _fields64(data[rest + named : rest + named + extra])
        size, packed, header = (next(fields, HUGE) if number == HUGE else number for number in (size, packed, header))
        if method or flags & ENCRYPTED or size != packed:
            raise Wrong(f"has the entry {quoted(name)} compressed or encrypted; torch stores entries as they are")
        yield _Entry(name, size, header)
    raise Wrong(f"has more than {MAX_ENTRIES} entries; no adapter needs that many")


def _fields64(extra: bytes) -> Iterator[int]:
    """The numbers of the 64-bit field (id 1) among the extra fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            numbers = extra[4 : 4 + length]
            yield from (number for (number,) in struct.iter_unpack("<Q", numbers[: len(numbers) // 8 * 8]))
        extra = extra[4 + length :]


def _place(data: mmap.mmap, entry: _Entry) -> Span:
    """Where the bytes of an entry lie, behind its local header, whose name must be the folder's."""
    at = entry.header
    if at + LOCAL.size > len(data):
        raise Wrong(f"has the entry {quoted(entry.name)} outside the file")
    magic, *_, named, extra = LOCAL.unpack_from(data, at)
    start = at + LOCAL.size + named + extra
    name = data[at + LOCAL.size : at + LOCAL.size + named].decode("utf-8", "replace")
    if magic != b"PK\x03\x04" or name != entry.name or start + entry.size > len(data):
        raise Wrong(f"has the entry {quoted(entry.name)} outside the file")
    return Span(start, start + entry.size)
