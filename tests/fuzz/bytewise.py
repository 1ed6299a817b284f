"""Bytes that were lost, turned, added or put in the place of others."""

import io
import zipfile
from collections.abc import Callable, Mapping
from random import Random

LENGTHS = (0, 1, 2, 7, 8, 63, 2**16, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def _length(blob: bytes) -> int:
    return int.from_bytes(blob[:8], "little") if len(blob) > 8 else 0


def _head(blob: bytes) -> int:
    """Bytes before the data of a safetensors file; half of any other."""
    end = 8 + _length(blob)
    return end if end <= len(blob) else max(8, len(blob) // 2)


def truncated(rng: Random, blob: bytes) -> bytes:
    end = _head(blob)
    places = (0, 1, 7, 8, 9, end - 1, end, end + 1, len(blob) - 1, len(blob) // 2, rng.randrange(len(blob)))
    return blob[: rng.choice(places)]


def without_a_piece(rng: Random, blob: bytes) -> bytes:
    at = rng.randrange(len(blob))
    return blob[:at] + blob[at + rng.choice((1, 2, 8, rng.randrange(1, 200))) :]


def with_a_piece_twice(rng: Random, blob: bytes) -> bytes:
    at, start = rng.randrange(len(blob)), rng.randrange(len(blob))
    return blob[:at] + blob[start : start + rng.randrange(1, 200)] + blob[at:]


def _turned(rng: Random, blob: bytes, start: int, end: int) -> bytes:
    made = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        made[rng.randrange(start, max(end, start + 1)) % len(made)] ^= 1 << rng.randrange(8)
    return bytes(made)


def bits_of_the_header(rng: Random, blob: bytes) -> bytes:
    return _turned(rng, blob, 0, _head(blob))


def bits_of_the_data(rng: Random, blob: bytes) -> bytes:
    return _turned(rng, blob, _head(blob), len(blob))


def letters_of_the_header(rng: Random, blob: bytes) -> bytes:
    made = bytearray(blob)
    for _ in range(rng.choice((1, 2, 4))):
        made[rng.randrange(8, max(_head(blob), 9)) % len(made)] = rng.choice(b'0123456789{}[]",:-.eE _\\\x00\xff')
    return bytes(made)


def header_length(rng: Random, blob: bytes) -> bytes:
    own = _length(blob)
    told = rng.choice((*LENGTHS, own + 1, max(own - 1, 0), len(blob) - 8, len(blob) - 7, rng.randrange(2**64)))
    return told.to_bytes(8, "little") + blob[8:]


def words_anywhere(rng: Random, blob: bytes) -> bytes:
    """Four bytes that FlatBuffers read as a place or a count, made extreme."""
    made = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = 4 * rng.randrange(len(made) // 4)
        made[at : at + 4] = rng.choice((*WORDS, rng.randrange(2**32), len(made))).to_bytes(4, "little")
    return bytes(made)


def zeros(rng: Random, blob: bytes) -> bytes:
    at = rng.randrange(len(blob))
    size = min(rng.choice((1, 8, 64, 512, len(blob))), len(blob) - at)
    return blob[:at] + bytes([rng.choice((0, 0, 255))]) * size + blob[at + size :]


def more_at_the_end(rng: Random, blob: bytes) -> bytes:
    return blob + rng.choice((b"\0", b"\n", bytes(4096), rng.randbytes(rng.randrange(1, 500)), blob))


def more_at_the_start(rng: Random, blob: bytes) -> bytes:
    return rng.choice((b"\0", b"\xef\xbb\xbf", b"\n", rng.randbytes(rng.randrange(1, 64)))) + blob


def something_else(rng: Random, blob: bytes) -> bytes:
    """What is found under the name of an adapter."""
    return rng.choice(_FOREIGN)(rng)


def _zip(rng: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", rng.randbytes(40))
    return file.getvalue()


_FOREIGN: tuple[Callable[[Random], bytes], ...] = (
    lambda rng: b"",
    lambda rng: b"<!DOCTYPE html><html><body>Log in</body></html>",
    lambda rng: b"  \n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    _zip,
    lambda rng: b"\x80\x02}q\x00X\x05\x00\x00\x00alphaq\x01K\x01s.",
    lambda rng: b"\x80\x04\x95" + rng.randbytes(60),
    lambda rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
    lambda rng: b"GGUF" + rng.randbytes(60),
    lambda rng: b"\x89PNG\r\n\x1a\n" + rng.randbytes(60),
    lambda rng: b'{"error": "Repository not found"}',
    lambda rng: b"{}",
    lambda rng: (2).to_bytes(8, "little") + b"{}",
    lambda rng: b"not found",
    lambda rng: rng.randbytes(rng.randrange(1, 5000)),
    lambda rng: bytes(rng.randrange(1, 5000)),
    lambda rng: b"\x28\0\0\0TORT" + rng.randbytes(rng.randrange(200)),
)

MUTATIONS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    made.__name__.replace("_", " "): made
    for made in (
        truncated,
        without_a_piece,
        with_a_piece_twice,
        bits_of_the_header,
        bits_of_the_data,
        letters_of_the_header,
        header_length,
        words_anywhere,
        zeros,
        more_at_the_end,
        more_at_the_start,
        something_else,
    )
}
