"""Styles as tensors: adapters with multipliers -> graph inputs of one component.

A swap opens no session, reads no file and writes no weight; it chooses which arrays the next run is fed.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.mix import Mix
from lora_edge.multiplier import Multiplier
from lora_edge.runtime.shelf import Shelf
from lora_edge.slots import SlotTable

Strength: TypeAlias = float | Multiplier | Sequence[float | Multiplier]
"""A multiplier: one for all, or one per image of the batch; each a number, or a `Multiplier`."""

Pair: TypeAlias = tuple[Adapter, Strength]

RATIOS = 1 << 20  # bytes of block weights, spelled out place by place, that are kept
MIXES = 256 << 20  # bytes that kept mixes hold on to; the arrays of a single adapter are its own


class Swap:
    """The adapter inputs of every component of a bundle.

    Attributes:
        copied: component -> bytes that its last change moved; a resident style, a mix that was used before, and every
            multiplier move only `lora.scales` and what has no lanes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.copied: dict[str, int] = {}
        self._bundle = bundle
        self._norms: dict[str, dict[str, FloatArray]] = {}
        self._ratios: Shelf[FloatArray] = Shelf(RATIOS, lambda ratios: ratios.nbytes)
        self._mixes: Shelf[tuple[Mix, tuple[Adapter, ...]]] = Shelf(MIXES, lambda held: held[0].nbytes)

    def feeds(
        self,
        component: str,
        adapters: Sequence[Pair],
        *,
        rows: int | None = None,
        owners: IntArray | None = None,
        step: int = 0,
        steps: int = 1,
    ) -> dict[str, Array]:
        """What to feed beside the plain inputs; nothing where no adapter acts.

        Args:
            component: `unet`, `text_encoder`, …
            adapters: with multipliers; the same adapter twice acts as the sum.
            rows: images, where the caller knows: so many multipliers may an adapter have, or one.
            owners: [batch rows] int64, the image that each row of the batch belongs to; None where rows are images.
            step, steps: which of how many, counted from 0, for multipliers that move.

        Raises:
            RequestError: a multiplier that is not finite, or rows that differ in number or where they cannot.
        """
        acting = self._acting(component, adapters, rows, step, steps)
        if not acting:
            self.copied[component] = 0
            return {}
        chosen = tuple(adapter for adapter, _ in acting)
        laid_out = 0

        def lay_out() -> tuple[Mix, tuple[Adapter, ...]]:
            nonlocal laid_out
            mix = self._mix(component, chosen)
            laid_out = mix.copied
            return mix, chosen

        mix, _ = self._mixes.take((component, *map(id, chosen)), lay_out)
        strengths = np.stack(np.broadcast_arrays(*(numbers for _, numbers in acting)), axis=1)
        if owners is not None and len(strengths) > 1:
            strengths = strengths[owners]
        moving = mix.moving(strengths)
        self.copied[component] = laid_out + sum(array.nbytes for array in moving.values())
        return mix.resting | moving

    def _acting(
        self, component: str, adapters: Sequence[Pair], rows: int | None, step: int, steps: int
    ) -> list[tuple[Adapter, FloatArray]]:
        """Adapters that change the component, with [rows or 1, places or 1] strengths.

        One that is off stays out, unless it only pauses: then the layout waits for it.
        """
        table = self._bundle.component(component).table
        sums: dict[int, tuple[Adapter, FloatArray, bool]] = {}
        for adapter, strength in adapters:
            if component in adapter.components:
                numbers = self._numbers(strength, table, step, steps)
                _, known, moves = sums.get(id(adapter), (adapter, np.zeros((1, 1), np.float32), False))
                if 1 < len(known) != len(numbers) > 1:
                    _refuse_rows({len(known), len(numbers)}, rows)
                sums[id(adapter)] = (adapter, known + numbers, moves or _moves(strength, component))
        acting = [(adapter, numbers) for adapter, numbers, moves in sums.values() if moves or numbers.any()]
        counts = {len(numbers) for _, numbers in acting} - {1}
        if len(counts) > 1 or (rows is not None and counts - {rows}):
            _refuse_rows(counts, rows)
        return acting

    def _numbers(self, strength: Strength, table: SlotTable, step: int, steps: int) -> FloatArray:
        """[rows or 1, places or 1] float32."""
        try:
            made = [self._places(Multiplier.of(one), table, step, steps) for one in multipliers(strength)]
            return np.stack(np.broadcast_arrays(*made))
        except (TypeError, ValueError):  # no numbers, or none at all
            raise RequestError(f"multipliers {strength!r} are not one finite number per row") from None

    def _places(self, multiplier: Multiplier, table: SlotTable, step: int, steps: int) -> FloatArray:
        """[places or 1] float32: multiplier x block weight."""
        number = np.array([multiplier.number(table.component, step, steps)], dtype=np.float32)
        if (blocks := multiplier.blocks) is None:
            return number
        return number * self._ratios.take((table.component, blocks), lambda: blocks.ratios(table))

    def _mix(self, component: str, adapters: Sequence[Adapter]) -> Mix:
        parts = [adapter.components[component] for adapter in adapters]
        if any(part.norms for part in parts) and component not in self._norms:
            self._norms[component] = self._bundle.component(component).norms()
        table = self._bundle.component(component).table
        return Mix(table, parts, self._norms.get(component), partial(self._bundle.weight, component))


def multipliers(strength: Strength) -> Sequence[float | Multiplier]:
    """One for all images, or one for each."""
    if isinstance(strength, Sequence | np.ndarray) and not isinstance(strength, str):
        return strength
    return [strength]


def of_image(strength: Strength, image: int) -> float | Multiplier:
    """The multiplier of one image."""
    each = multipliers(strength)
    return each[image if len(each) > 1 else 0]


def _moves(strength: Strength, component: str) -> bool:
    return component == "unet" and any(isinstance(one, Multiplier) and one.moves for one in multipliers(strength))


def _refuse_rows(counts: set[int], rows: int | None) -> None:
    found = " and ".join(map(str, sorted(counts)))
    raise RequestError(f"adapters have {found} multipliers for {rows or 'the same'} rows: give one, or one each")
