"""Adapters side by side in one component: forms and strengths -> graph inputs.

The lanes of all adapters lie along the rank axis of each slot, adapter by adapter. Strengths appear in `lora.scales`
alone, so that changing one moves a few kB and no weight; gains, biases and norms, which have no lanes, are summed up
anew, and are a few kB too.

A strength is one number per row, adapter and place, where the places of a component are its slots in their order and
then its norms: multiplier x block weight. What is the same everywhere has an axis of length 1.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import RequestError
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank
from lora_edge.slots import RANKS, SCALES, Slot, SlotTable


class Mix:
    """An ordered set of adapters, laid out for one component.

    Args:
        table: the component's slots.
        parts: what each adapter changes in it.
        norms: `<norm>.weight` and `<norm>.bias` -> the base's values [channels] float32; needed for norm deltas.
        weight: slot name -> the base's weight as in torch; needed where gains of both axes meet on a slot.

    Attributes:
        resting: the part of the feeds that strengths leave alone; the same arrays every time.
        copied: bytes that were moved to lay the adapters out; 0 for one adapter, whose arrays are taken as they lie.
    """

    def __init__(
        self,
        table: SlotTable,
        parts: Sequence[ComponentForms],
        norms: Mapping[str, FloatArray] | None = None,
        weight: Callable[[str], FloatArray] | None = None,
    ) -> None:
        self._places = {name: index for index, name in enumerate(chain(table.by_name, table.norms))}
        self._norms = norms or {}
        self.resting: dict[str, Array] = {}
        self.copied = 0
        ranks: list[int] = []
        runs: list[tuple[int, int, int, float]] = []  # lanes with one owner, place and scale
        forms = [_on_one_axis(table, part, parts, weight) for part in parts]
        for slot in table:
            held = [
                (owner, form)
                for owner, part in enumerate(forms)
                for form in part.get(slot.name, ())
                if isinstance(form, LowRank) and form.rank
            ]
            ranks.append(sum(form.rank for _, form in held))
            runs += [(form.rank, owner, self._places[slot.name], form.scale) for owner, form in held]
            if held:
                self.resting[slot.port("down")] = self._side_by_side([form.down for _, form in held], 1)
                self.resting[slot.port("up")] = self._side_by_side([form.up for _, form in held], 0)
        self.resting[RANKS] = np.array(ranks, dtype=np.int64)
        lanes = np.array([rank for rank, _, _, _ in runs], np.intp)
        self._owners = np.repeat(np.array([owner for _, owner, _, _ in runs], np.intp), lanes)
        self._lane_places = np.repeat(np.array([place for _, _, place, _ in runs], np.intp), lanes)
        self._scales = np.repeat(np.array([scale for _, _, _, scale in runs], np.float32), lanes)[None]
        self._sums = tuple(_sums(table, forms, parts))
        self._whole = sorted({owner for _, _, owner, _ in self._sums})

    @property
    def nbytes(self) -> int:
        """Bytes of what strengths leave alone."""
        return sum(array.nbytes for array in self.resting.values())

    def scales(self, strengths: FloatArray) -> FloatArray:
        """`lora.scales`, strength x alpha / rank per lane.

        Args:
            strengths: [rows or 1, adapters, places or 1] float32.

        Returns:
            [rows or 1, total_rank] float32.
        """
        if strengths.shape[1:] == (1, 1):  # one number for all lanes
            return strengths[:, 0] * self._scales
        places = self._lane_places if strengths.shape[2] > 1 else 0
        return np.ascontiguousarray(strengths[:, self._owners, places] * self._scales, dtype=np.float32)

    def feeds(self, strengths: FloatArray) -> dict[str, Array]:
        """Every graph input that differs from its default.

        Args:
            strengths: [rows or 1, adapters(, places or 1)] float32.

        Raises:
            RequestError: rows differ although an adapter has gains, biases or norms, which cannot differ by row.
        """
        return {**self.resting, **self.moving(strengths)}

    def moving(self, strengths: FloatArray | float) -> dict[str, Array]:
        """The part of the feeds that strengths change: all that a slider moves. Takes and raises as `feeds`.

        One number is the same as an array of it.
        """
        if isinstance(strengths, float):
            if not self._sums:
                return {SCALES: self._scales * strengths}
            strengths = np.array([strengths], np.float32)
        strengths = np.atleast_3d(strengths)
        made: dict[str, Array] = {SCALES: self.scales(strengths)}
        if not self._sums:
            return made
        if (strengths[:, self._whole] != strengths[:1, self._whole]).any():
            raise RequestError(
                "an adapter with gains, biases or norms acts on the whole batch: give every image the same multiplier"
            )
        for port, place, owner, change in self._sums:
            start = made.get(port, self._norms.get(port, 1.0 if ".gain_" in port else 0.0))
            strength = strengths[0, owner, self._places[place] if strengths.shape[2] > 1 else 0]
            made[port] = np.asarray(start + strength * change, dtype=np.float32)
        return made

    def _side_by_side(self, arrays: Sequence[FloatArray], axis: int) -> FloatArray:
        """One adapter's arrays are taken as they are; only a mix copies."""
        if len(arrays) == 1:
            return arrays[0]
        joined = np.concatenate(arrays, axis=axis)
        self.copied += joined.nbytes
        return joined


Sum = tuple[str, str, int, FloatArray]  # graph input, slot or norm, adapter, change at strength 1


def _sums(
    table: SlotTable, forms: Sequence[Mapping[str, Sequence[Form]]], parts: Sequence[ComponentForms]
) -> list[Sum]:
    """Everything that has no lanes."""
    made: list[Sum] = []
    for owner, (slots, part) in enumerate(zip(forms, parts, strict=True)):
        for name, held in slots.items():
            slot = table.by_name[name]
            for form in held:
                if isinstance(form, Gain):
                    made.append((slot.port(f"gain_{form.axis}"), name, owner, form.values - 1))
                elif isinstance(form, Bias):
                    made.append((slot.port("bias"), name, owner, form.delta))
        for name, norm in part.norms.items():
            for leaf, delta in (("weight", norm.weight), ("bias", norm.bias)):
                if delta is not None:
                    made.append((f"{name}.{leaf}", name, owner, delta))
    return made


def _on_one_axis(
    table: SlotTable,
    part: ComponentForms,
    parts: Sequence[ComponentForms],
    weight: Callable[[str], FloatArray] | None,
) -> dict[str, tuple[Form, ...]]:
    """The forms of an adapter by slot; where gains of both axes meet, those over inputs become lanes.

    The graph multiplies the two gains, while changes against the base add up.
    """
    made: dict[str, tuple[Form, ...]] = {}
    for name, forms in part.slots.items():
        axes = {form.axis for other in parts for form in other.slots.get(name, ()) if isinstance(form, Gain)}
        if len(axes) < 2:
            made[name] = forms
            continue
        if weight is None:
            raise RequestError(f"gains over inputs and over outputs meet on {name}, which takes the base's weights")
        made[name] = tuple(_lanes(table.by_name[name], form, weight(name)) for form in forms)
    return made


def _lanes(slot: Slot, form: Form, weight: FloatArray) -> Form:
    """A gain over inputs as W * (gain - 1) with one lane per row of W^T or per column, whichever are fewer."""
    if not isinstance(form, Gain) or form.axis == "out":
        return form
    patch = np.repeat(form.values - 1, slot.patch // slot.in_features)
    flat = weight.reshape(slot.out_features, slot.patch).T
    if slot.patch < slot.out_features:
        return LowRank(np.diag(patch), np.ascontiguousarray(flat))
    return LowRank(np.ascontiguousarray(flat * patch[:, None]), np.eye(slot.out_features, dtype=np.float32))
