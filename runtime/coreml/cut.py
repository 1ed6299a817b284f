"""Fitting adapters into fewer lanes by singular value decompositions, lanes given to where they keep the most.

The lanes of an adapter are the same in every slot, so they are dealt out to adapters: each next one goes to the
adapter that keeps the most energy by it, summed over its slots. As singular values fall, no other deal keeps more
(each adapter has at least one). Energy is the sum of squared singular values of the changes at multiplier 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_edge.arrays import Array
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.runtime.coreml.lanes import Named, rank_of, width_of
from lora_edge.tools.svd import Budget, Truncated, truncate_lanes


def cut(parts: Sequence[Named], rank: int) -> tuple[list[Named], list[str]]:
    """The adapters with at most so many lanes together.

    Args:
        parts: adapters, at most `rank` of them, which have lanes alone.
        rank: lanes.

    Returns:
        The adapters, and a sentence for each that lost something: how many lanes, and the share of its energy.
    """
    best = [
        {slot: _best(part, slot, rank) for slot in part.slots if rank_of(part, slot)} for _, part in parts
    ]  # nothing beyond `rank` lanes can be kept
    made, told = [], []
    for (name, part), own, lanes in zip(parts, best, _deal(parts, best, rank), strict=True):
        slots = {
            slot: forms if rank_of(part, slot) <= lanes else (_first(own[slot], lanes),)
            for slot, forms in part.slots.items()
        }
        made.append((name, replace(part, slots=slots)))
        if lanes < width_of(part):
            total = sum(found.total for found in own.values())
            lost = sum(
                max(found.total - _energies(found)[:lanes].sum(), 0.0)
                for slot, found in own.items()
                if rank_of(part, slot) > lanes
            )
            share = 100 * lost / total if total else 0.0
            told.append(f"{name}: {width_of(part)} lanes are cut to {lanes}, which loses {share:.2g} % of its energy")
    return made, told


def _best(part: ComponentForms, slot: str, rank: int) -> Truncated:
    """The most that so many lanes can keep of a slot's change."""
    forms = [form for form in part.slots[slot] if isinstance(form, LowRank)]
    down = np.concatenate([form.down for form in forms], axis=1)
    up = np.concatenate([form.up * np.float32(form.scale) for form in forms])
    return truncate_lanes(down, up, (), Budget(rank))


def _first(found: Truncated, lanes: int) -> LowRank:
    return LowRank(np.ascontiguousarray(found.down[:, :lanes]), np.ascontiguousarray(found.up[:lanes]))


def _energies(found: Truncated) -> Array:
    """Squared singular value of each lane, [lanes] float64; each factor carries the root of the value."""
    down, up = found.down.astype(np.float64), found.up.astype(np.float64)
    made: Array = np.square(down).sum(axis=0) * np.square(up).sum(axis=1)
    return made


def _deal(parts: Sequence[Named], best: Sequence[dict[str, Truncated]], rank: int) -> list[int]:
    """Lanes of each adapter."""
    gains = np.zeros((len(parts), rank + 1))  # [adapters, lane]: energy that a lane adds; the last column is no lane
    for row, own in zip(gains, best, strict=True):
        for found in own.values():
            energies = _energies(found)
            row[: len(energies)] += energies
    widths = [width_of(part) for _, part in parts]
    lanes = [min(width, 1) for width in widths]
    while sum(lanes) < rank:
        hungry = [index for index, width in enumerate(widths) if lanes[index] < width]
        if not hungry:
            break
        lanes[max(hungry, key=lambda index: gains[index, lanes[index]])] += 1
    return lanes
