"""The wire format of protocol buffers: a message as numbered fields.

Source: the specification at https://protobuf.dev/programming-guides/encoding/. Messages are read one level at a time,
so nothing recurses, and a field's bytes stay a view of the file, so nothing is copied.
"""

import struct
from collections.abc import Iterator

from lora_edge.errors import BundleDamaged

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}
MAX_VARINT = 10  # bytes of a varint of 64 bits
MAX_FIELDS = 1 << 18  # of one message; a UNet of Stable Diffusion has some 6,000 operations

Value = int | memoryview


def varint(view: memoryview, at: int, where: str) -> tuple[int, int]:
    """An unsigned varint and the offset after it.

    Raises:
        BundleDamaged: it ends in the middle, or is longer than 64 bits.
    """
    number = 0
    for index, byte in enumerate(view[at : at + MAX_VARINT]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if number >> 64:
                break
            return number, at + index + 1
    raise BundleDamaged(f"{where} ends in the middle of a number, or holds one that is too long")


def signed(number: int) -> int:
    """What a varint of an int32 or int64 means: negative numbers are written in 64 bits, two's complement."""
    return number - (1 << 64) if number >> 63 else number


def _fields(view: memoryview, where: str) -> Iterator[tuple[int, int, Value]]:
    """Field number, wire type, value: an int for a varint, else the bytes."""
    at = 0
    while at < len(view):
        key, at = varint(view, at, where)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(view, at, where)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = varint(view, at, where)
        elif kind in SIZES:
            size = SIZES[kind]
        else:
            raise BundleDamaged(f"{where} is no protocol buffer: it has a field of wire type {kind}")
        if size > len(view) - at:
            raise BundleDamaged(f"{where} ends in the middle: a field of {size} bytes has {len(view) - at} left")
        yield number, kind, view[at : at + size]
        at += size


class Message:
    """One message, its fields by number.

    Attributes:
        where: what it is, for sentences that refuse it.
    """

    __slots__ = ("_fields", "where")

    def __init__(self, view: memoryview, where: str) -> None:
        self.where = where
        self._fields: dict[int, list[tuple[int, Value]]] = {}
        for count, (number, kind, value) in enumerate(_fields(view, where)):
            if count == MAX_FIELDS:
                raise BundleDamaged(f"{where} has more than {MAX_FIELDS} fields, more than any model has")
            self._fields.setdefault(number, []).append((kind, value))

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def _one(self, number: int, kind: int) -> Value | None:
        found = self._fields.get(number, ())
        if len(found) > 1:
            raise BundleDamaged(f"{self.where} says field {number} {len(found)} times, where once is allowed")
        for wrote, value in found:
            if wrote != kind:
                raise BundleDamaged(f"{self.where} writes field {number} in another form than it has")
            return value
        return None

    def integer(self, number: int) -> int:
        """A varint, 0 where it is absent."""
        found = self._one(number, VARINT)
        return signed(found) if isinstance(found, int) else 0

    def view(self, number: int) -> memoryview | None:
        """The bytes of a field that may be absent."""
        found = self._one(number, BYTES)
        return found if isinstance(found, memoryview) else None

    def real(self, number: int, form: str) -> float:
        """A float ("<f") or a double ("<d"), 0 where it is absent."""
        found = self._one(number, FIXED32 if form == "<f" else FIXED64)
        return float(struct.unpack(form, found)[0]) if isinstance(found, memoryview) else 0.0

    def text(self, number: int) -> str:
        """A string, "" where it is absent."""
        return decode(self.view(number) or memoryview(b""), self.where)

    def message(self, number: int, where: str = "") -> "Message":
        """A message, empty where it is absent."""
        return Message(self.view(number) or memoryview(b""), where or self.where)

    def views(self, number: int) -> list[memoryview]:
        """The bytes of every occurrence."""
        found = self._fields.get(number, [])
        views = [value for _, value in found if isinstance(value, memoryview)]
        if len(views) != len(found):
            raise BundleDamaged(f"{self.where} writes field {number} in another form than it has")
        return views

    def messages(self, number: int, where: str = "") -> list["Message"]:
        """Every occurrence as a message."""
        return [Message(view, where or self.where) for view in self.views(number)]

    def texts(self, number: int) -> list[str]:
        """Every occurrence as a string."""
        return [decode(view, self.where) for view in self.views(number)]

    def integers(self, number: int) -> list[int]:
        """Numbers written one by one or packed."""
        made: list[int] = []
        for kind, value in self._fields.get(number, ()):
            if isinstance(value, int):
                made.append(signed(value))
                continue
            if kind != BYTES:
                raise BundleDamaged(f"{self.where} writes field {number} in another form than it has")
            at = 0
            while at < len(value):
                one, at = varint(value, at, self.where)
                made.append(signed(one))
        return made

    def packed(self, number: int, size: int) -> bytes:
        """Numbers of a fixed size, written one by one or packed, as their bytes."""
        made = b"".join(bytes(value) for value in self.views(number))
        if len(made) % size:
            raise BundleDamaged(f"{self.where} ends in the middle of a number")
        return made

    def entries(self, number: int) -> dict[str, memoryview]:
        """A map: key -> bytes of its value.

        Raises:
            BundleDamaged: a key is said twice.
        """
        made: dict[str, memoryview] = {}
        for entry in self.messages(number):
            key = entry.text(1)
            if key in made:
                raise BundleDamaged(f"{self.where} says {key!r} twice")
            made[key] = entry.view(2) or memoryview(b"")
        return made


def decode(view: memoryview, where: str) -> str:
    """UTF-8 text.

    Raises:
        BundleDamaged: it is none.
    """
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError as error:
        raise BundleDamaged(f"{where} has a text that is not UTF-8") from error
