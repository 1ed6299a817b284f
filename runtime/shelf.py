"""Adapters kept ready: read once, held up to a stated size, the least recently used put back first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import folder_weights

Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """A cache of things with a size.

    Attributes:
        capacity: bytes held at most; one item may be larger and is then held alone.
    """

    def __init__(self, capacity: int, size: Callable[[Item], int]) -> None:
        self.capacity = capacity
        self._size = size
        self._items: OrderedDict[Hashable, Item] = OrderedDict()

    def take(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """The item of that key, made now if it is not there."""
        if key not in self._items:
            self._items[key] = make()
        self._items.move_to_end(key)
        while self.nbytes > self.capacity and len(self._items) > 1:
            self._items.popitem(last=False)
        return self._items[key]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(map(self._size, self._items.values()))

    def __len__(self) -> int:
        return len(self._items)


def adapter_shelf(capacity: int) -> "Shelf[Adapter]":
    """A shelf of adapters."""
    return Shelf(capacity, lambda adapter: adapter.nbytes)


def version(path: Path) -> tuple[str, int, int]:
    """Path, time of last change in ns and size: a file that was written anew is read anew; nothing is read for it."""
    file = (folder_weights(path) or path) if path.is_dir() else path
    stat = file.stat()
    return str(file.resolve()), stat.st_mtime_ns, stat.st_size
