"""Styles as tensors: adapters with multipliers -> graph inputs of one component.

A swap opens no session, reads no file and writes no weight; it chooses which arrays the next run is fed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array, FloatArray
from lora_edge.bundle import Component
from lora_edge.errors import RequestError
from lora_edge.forms import ComponentForms
from lora_edge.mix import Mix
from lora_edge.multiplier import Multiplier
from lora_edge.runtime.shelf import Shelf

Strength = float | Multiplier | Sequence[float]
"""A multiplier: one number, one per kind of component, or one per row of the batch."""

MIXES = 256 << 20  # bytes that kept mixes hold on to; the arrays of a single adapter are its own


class Swap:
    """The adapter inputs of every component of a bundle.

    Args:
        components: by name.
    """

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components
        self._norms: dict[str, dict[str, FloatArray]] = {}
        self._mixes: Shelf[tuple[Mix, tuple[Adapter, ...]]] = Shelf(MIXES, lambda held: held[0].nbytes)

    def feeds(
        self,
        component: str,
        adapters: Sequence[tuple[Adapter, Strength]],
        rows: int | None = None,
        repeat: int = 1,
    ) -> dict[str, Array]:
        """What to feed beside the plain inputs; nothing where no adapter acts.

        Args:
            component: `unet`, `text_encoder`, …
            adapters: with multipliers; the same adapter twice acts as the sum.
            rows: of the batch, where the caller knows: so many multipliers may an adapter have, or one.
            repeat: how often the rows of multipliers per row stand in the batch (2 for guidance in one call).

        Raises:
            RequestError: a multiplier that is not finite, or rows that differ in number or where they cannot.
        """
        acting = self._acting(component, adapters, rows)
        if not acting:
            return {}
        chosen = tuple(adapter for adapter, _ in acting)
        mix, _ = self._mixes.take((component, *map(id, chosen)), lambda: (self._mix(component, chosen), chosen))
        columns = np.broadcast_arrays(*(numbers for _, numbers in acting))
        return mix.feeds(np.tile(np.stack(columns, axis=1), (repeat if len(columns[0]) > 1 else 1, 1)))

    def _acting(
        self, component: str, adapters: Sequence[tuple[Adapter, Strength]], rows: int | None
    ) -> list[tuple[Adapter, FloatArray]]:
        """Adapters that change the component, with [rows or 1] multipliers of which one at least is not 0."""
        sums: dict[int, tuple[Adapter, FloatArray]] = {}
        for adapter, strength in adapters:
            if component in adapter.components:
                numbers = _numbers(strength, component)
                known = sums.get(id(adapter))
                sums[id(adapter)] = (adapter, numbers if known is None else known[1] + numbers)
        acting = [(adapter, numbers) for adapter, numbers in sums.values() if numbers.any()]
        counts = {len(numbers) for _, numbers in acting} - {1}
        if len(counts) > 1 or (rows is not None and counts - {rows}):
            found = " and ".join(map(str, sorted(counts)))
            raise RequestError(
                f"adapters have {found} multipliers for {rows or 'the same'} rows: give one, or one each"
            )
        return acting

    def _mix(self, component: str, adapters: Sequence[Adapter]) -> Mix:
        parts: list[ComponentForms] = [adapter.components[component] for adapter in adapters]
        table = self._components[component].table
        if any(part.norms for part in parts) and component not in self._norms:
            self._norms[component] = self._components[component].norms()
        return Mix(table, parts, self._norms.get(component))


def differs_by_row(strength: Strength) -> bool:
    """Whether a multiplier is given row by row."""
    return not isinstance(strength, int | float | Multiplier)


def _numbers(strength: Strength, component: str) -> FloatArray:
    if isinstance(strength, int | float | Multiplier):
        return np.array([Multiplier.of(strength).for_component(component)], dtype=np.float32)
    numbers = np.atleast_1d(np.asarray(strength, dtype=np.float32))
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise RequestError(f"multipliers {strength!r} are not one finite number per row")
    return numbers
