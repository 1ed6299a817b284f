"""Things kept ready: made once, held up to a stated size, the least recently used put back first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """A cache of things with a size.

    Attributes:
        capacity: bytes held at most; one item may be larger and is then held alone.
        nbytes: bytes held.
    """

    def __init__(self, capacity: int, size: Callable[[Item], int]) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self._size = size
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()

    def take(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """The item of that key, made now if it is not there; only then are sizes looked at."""
        if (held := self.get(key)) is not None:
            return held
        item = make()
        size = self._size(item)
        self._items[key] = item, size
        self.nbytes += size
        while self.nbytes > self.capacity and len(self._items) > 1:
            _, (_, freed) = self._items.popitem(last=False)
            self.nbytes -= freed
        return item

    def get(self, key: Hashable) -> Item | None:
        """The item of that key if it is there; it then counts as just used."""
        held = self._items.get(key)
        if held is None:
            return None
        self._items.move_to_end(key)
        return held[0]

    def __len__(self) -> int:
        return len(self._items)
