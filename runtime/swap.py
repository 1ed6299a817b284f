"""Styles as tensors: adapters with multipliers -> graph inputs of one component.

A swap opens no session, reads no file and writes no weight; it chooses which arrays the next run is fed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.blocks import BlockWeights
from lora_edge.bundle import Bundle
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.multiplier import Multiplier
from lora_edge.runtime.layout import Laid, Layout
from lora_edge.runtime.pairs import Adapters, Pair, Strength, checked, checked_pairs, plain_sums, refuse_rows
from lora_edge.runtime.shelf import Shelf
from lora_edge.slots import SlotTable

Holding: TypeAlias = tuple[Adapter, BlockWeights | None]
"""An adapter, and the block weights that its layout folds in."""

Acting: TypeAlias = tuple[tuple[Holding, ...], FloatArray | float]
"""Adapters that act, and their strengths as `Laid.moving` takes them."""

NOBODY: Acting = ((), np.zeros((1, 0, 1), np.float32))
RATIOS = 1 << 20  # bytes of block weights, spelled out place by place, that are kept
MIXES = 256 << 20  # bytes that kept mixes hold on to; the arrays of a single adapter are its own


class Swap:
    """The adapter inputs of every component of a bundle.

    Args:
        bundle: whose components they are.
        layout: how adapters lie in the inputs of the backend's graphs.
    """

    def __init__(self, bundle: Bundle, layout: Layout) -> None:
        self._last: dict[str, tuple[int, Mapping[str, Array]]] = {}  # bytes laid out anew, and what moved
        self._bundle, self._layout = bundle, layout
        self._ratios: Shelf[FloatArray] = Shelf(RATIOS, lambda ratios: ratios.nbytes)
        self._mixes: Shelf[tuple[Laid, tuple[Holding, ...]]] = Shelf(MIXES, lambda held: held[0].nbytes)

    @property
    def copied(self) -> dict[str, int]:
        """Component -> bytes that its last change moved; a resident style, a mix that was used before, and every
        multiplier move only numbers per lane and what has no lanes."""
        return {
            component: laid_out + sum(array.nbytes for array in moving.values())
            for component, (laid_out, moving) in self._last.items()
        }

    def feeds(
        self,
        component: str,
        adapters: Adapters,
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
            ComponentMissing: the bundle has none of that name.
            RequestError: something else than pairs, a multiplier that is not finite, or rows that differ in number or
                where they cannot.
        """
        plain = plain_sums(component, adapters)
        if plain is None:
            chosen, strengths = self._acting(component, checked_pairs(adapters), rows, step, steps)
        else:
            chosen, strengths = _plain(plain)
        if not chosen:
            self._bundle.component(component)  # or the adapters', which know it
            self._last[component] = 0, {}
            return {}
        laid_out, key = 0, (component, *[(id(adapter), blocks) for adapter, blocks in chosen])
        if (held := self._mixes.get(key)) is None:
            parts = [(one[0].name, self._part(component, *one)) for one in chosen]
            held = self._mixes.take(key, lambda: (self._layout.lay(component, parts), chosen))
            laid_out = held[0].copied
        mix, _ = held  # adapters are kept with it: their ids are theirs for as long
        if owners is not None and not isinstance(strengths, float) and len(strengths) > 1:
            strengths = strengths[owners]
        moving = mix.moving(strengths)
        self._last[component] = laid_out, moving
        return {**mix.resting, **moving}

    def _acting(self, component: str, adapters: Sequence[Pair], rows: int | None, step: int, steps: int) -> Acting:
        """Adapters that change the component, with their strengths.

        One that is off stays out, unless it only pauses: then the layout waits for it.
        """
        table = self._bundle.component(component).table
        sums: dict[tuple[int, BlockWeights | None], tuple[Holding, FloatArray, bool]] = {}
        for adapter, strength in adapters:
            if component not in adapter.components:
                continue
            for blocks, numbers, moves in self._numbers(strength, table, step, steps):
                key, start = (id(adapter), blocks), ((adapter, blocks), np.zeros((1, 1), np.float32), False)
                holding, known, moved = sums.get(key, start)
                if 1 < len(known) != len(numbers) > 1:
                    refuse_rows({len(known), len(numbers)}, rows)
                sums[key] = (holding, known + numbers, moves or moved)
        acting = [(holding, numbers) for holding, numbers, moves in sums.values() if moves or numbers.any()]
        counts = {len(numbers) for _, numbers in acting} - {1}
        if len(counts) > 1 or (rows is not None and counts - {rows}):
            refuse_rows(counts, rows)
        if not acting:
            return NOBODY
        return tuple(holding for holding, _ in acting), np.stack(np.broadcast_arrays(*(n for _, n in acting)), axis=1)

    def _numbers(
        self, strength: Strength, table: SlotTable, step: int, steps: int
    ) -> list[tuple[BlockWeights | None, FloatArray, bool]]:
        """[rows or 1, places or 1] float32 and whether they move, for each of the block weights that are folded in."""
        each = checked(strength)
        folded = dict.fromkeys(one.blocks for one in each) if self._layout.folds_blocks else {}
        if folded.keys() <= {None}:
            made = [self._places(one, table, step, steps) for one in each]
            return [(None, np.stack(np.broadcast_arrays(*made)), _moves(each, table))]
        numbers = np.array([[one.number(table.component, step, steps)] for one in each], np.float32)
        return [
            (blocks, numbers * [[one.blocks == blocks] for one in each], _moves(_only(each, blocks), table))
            for blocks in folded
        ]

    def _places(self, multiplier: Multiplier, table: SlotTable, step: int, steps: int) -> FloatArray:
        """[places or 1] float32: multiplier x block weight."""
        number = np.array([multiplier.number(table.component, step, steps)], dtype=np.float32)
        if (blocks := multiplier.blocks) is None:
            return number
        return number * self._ratios_of(table, blocks)

    def _ratios_of(self, table: SlotTable, blocks: BlockWeights) -> FloatArray:
        """[places] float32."""
        return self._ratios.take((table.component, blocks), lambda: blocks.ratios(table))

    def _part(self, component: str, adapter: Adapter, blocks: BlockWeights | None) -> ComponentForms:
        """What an adapter changes, with block weights in the scales of its lanes."""
        part, table = adapter.components[component], self._bundle.component(component).table
        if blocks is None:
            return part
        ratios = dict(zip(table.by_name, self._ratios_of(table, blocks).tolist(), strict=False))  # norms come last
        slots = {
            name: tuple(
                replace(form, scale=form.scale * ratios[name]) if isinstance(form, LowRank) else form for form in forms
            )
            for name, forms in part.slots.items()
        }
        return replace(part, slots=slots)


def _moves(each: Sequence[Multiplier], table: SlotTable) -> bool:
    return table.component == "unet" and any(one.moves for one in each)


def _only(each: Sequence[Multiplier], blocks: BlockWeights | None) -> list[Multiplier]:
    return [one for one in each if one.blocks == blocks]


def _plain(acting: Sequence[tuple[Adapter, float]]) -> Acting:
    chosen = tuple((adapter, None) for adapter, _ in acting)
    if len(acting) == 1:
        return chosen, float(acting[0][1])
    return chosen, np.array([[number] for _, number in acting], np.float32).reshape(1, -1, 1)
