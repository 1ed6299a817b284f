"""What an adapter will take in memory, told from the shapes in its header before any tensor is read."""

from collections.abc import Iterable
from dataclasses import dataclass

from lora_edge.errors import AdapterTooLarge

MEGA = 1e6


@dataclass(frozen=True)
class Cost:
    """What the graph inputs of a fitted adapter take.

    Attributes:
        nbytes: of all of them, float32.
        lanes: of all slots together.
        full_rank: "<slot> of <component>" of the slots whose change has no smaller form than full rank.
        full_rank_bytes: what those take of `nbytes`.
    """

    nbytes: int = 0
    lanes: int = 0
    full_rank: tuple[str, ...] = ()
    full_rank_bytes: int = 0

    def __str__(self) -> str:
        full = f", {self._full()}" if self.full_rank else ""
        return f"{self.nbytes / MEGA:.1f} MB in {self.lanes} lanes{full}"

    def _full(self) -> str:
        return f"{self.full_rank_bytes / MEGA:.1f} MB of it in {len(self.full_rank)} slots of full rank"

    def refuse_beyond(self, max_bytes: int, where: object) -> None:
        """Refuse an adapter that takes more than it may.

        Raises:
            AdapterTooLarge: it does.
        """
        if self.nbytes > max_bytes:
            raise AdapterTooLarge(
                f"{where} would take {self} in memory, and {max_bytes / MEGA:.1f} MB are allowed; make it smaller with "
                "`lora-edge resize`, or write it into a checkpoint with `lora-edge bake`"
            )

    def warnings(self) -> Iterable[str]:
        """What a person should know of it."""
        if self.full_rank:
            yield f"takes {self.nbytes / MEGA:.1f} MB in memory, {self._full()} (first: {self.full_rank[0]})"
