"""What a text encoder made of a text, kept from request to request under all that it depends on."""

import hashlib
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lora_edge.arrays import FloatArray
from lora_edge.blocks import BlockWeights
from lora_edge.runtime.chunks import Chunk
from lora_edge.runtime.shelf import Shelf
from lora_edge.runtime.words import Words

TEXTS = 64 << 20  # bytes; a chunk of Stable Diffusion 1 takes 231 kB


class Acting(NamedTuple):
    """How one adapter acts on the text encoder; adapter: its number in `Numbers`."""

    adapter: int
    multiplier: float
    blocks: BlockWeights | None


class TextKey(NamedTuple):
    """All that the state of a chunk depends on.

    Attributes:
        tokens: id of each token; for a word that an embedding teaches, the sha256 of its vector, since its id is the
            request's own.
        acting: the adapters that act, in their order.
        clip_skip: which layer is read.
    """

    tokens: tuple[int | bytes, ...]
    acting: tuple[Acting, ...]
    clip_skip: int


class Numbers:
    """A number for every living object, never given again, so that it can stand for the object without holding it."""

    def __init__(self) -> None:
        self._next = itertools.count()
        self._known: dict[int, int] = {}

    def of(self, thing: object) -> int:
        """The number of an object; one that has gone may leave its address to another, but not its number."""
        address = id(thing)
        if address not in self._known:
            self._known[address] = next(self._next)
            weakref.finalize(thing, self._known.pop, address).atexit = False
        return self._known[address]


class TextCache:
    """States of chunks, before emphasis, up to a number of bytes.

    Attributes:
        hits: chunks that were there when a request asked for them.
        misses: chunks that had to be encoded.
    """

    def __init__(self, capacity: int = TEXTS) -> None:
        self.hits = self.misses = 0
        self.numbers = Numbers()
        self._shelf: Shelf[FloatArray] = Shelf(capacity, lambda state: state.nbytes)

    def states(
        self, wanted: Sequence[TextKey], make: Callable[[Sequence[int]], Sequence[FloatArray]]
    ) -> list[FloatArray]:
        """[tokens, dim] float32 for each key; what is not kept is made in one call.

        Args:
            wanted: keys, some of them perhaps equal.
            make: indices into `wanted`, each for another key, at least one -> their states.
        """
        first: dict[TextKey, int] = {}
        for index, key in enumerate(wanted):
            first.setdefault(key, index)
        known = {key: self._shelf.get(key) for key in first}
        missing = [key for key, state in known.items() if state is None]
        self.hits, self.misses = self.hits + len(known) - len(missing), self.misses + len(missing)
        if missing:
            for key, made in zip(missing, make([first[key] for key in missing]), strict=True):
                made.flags.writeable = False  # it is handed out again
                known[key] = self._shelf.take(key, lambda made=made: made)  # type: ignore[misc]
        return [known[key] for key in wanted]  # type: ignore[misc]

    @property
    def info(self) -> dict[str, Any]:
        """Hits, misses, chunks kept and their bytes."""
        return {"hits": self.hits, "misses": self.misses, "kept": len(self._shelf), "bytes": self._shelf.nbytes}


def spelled(chunk: Chunk, words: Words) -> tuple[int | bytes, ...]:
    """The tokens of a chunk as `TextKey` has them."""
    base, taught = words.vocabulary, words.tokens
    return tuple(hashlib.sha256(taught[token - base]).digest() if token >= base else token for token in chunk.ids)
