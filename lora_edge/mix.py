"""Adapters side by side in one component: forms and multipliers -> graph inputs.

The lanes of all adapters lie along the rank axis of each slot, adapter by adapter. Multipliers appear in
`lora.scales` alone, so that changing one moves a few kB and no weight; gains, biases and norms, which have no lanes,
are summed up anew, and are a few kB too.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import RequestError
from lora_edge.forms import Bias, ComponentForms, Gain, LowRank
from lora_edge.slots import RANKS, SCALES, SlotTable


class Mix:
    """An ordered set of adapters, laid out for one component.

    Args:
        table: the component's slots.
        parts: what each adapter changes in it.
        norms: `<norm>.weight` and `<norm>.bias` -> the base's values [channels] float32; needed for norm deltas.
    """

    def __init__(
        self, table: SlotTable, parts: Sequence[ComponentForms], norms: Mapping[str, FloatArray] | None = None
    ) -> None:
        self._parts = tuple(parts)
        self._norms = norms or {}
        self._layers: dict[str, Array] = {}
        ranks, owners, scales = [], [], []
        for slot in table:
            held = [
                (owner, form)
                for owner, part in enumerate(parts)
                for form in part.slots.get(slot.name, ())
                if isinstance(form, LowRank) and form.rank
            ]
            ranks.append(sum(form.rank for _, form in held))
            owners += [owner for owner, form in held for _ in range(form.rank)]
            scales += [form.scale for _, form in held for _ in range(form.rank)]
            if held:
                self._layers[slot.port("down")] = _side_by_side([form.down for _, form in held], 1)
                self._layers[slot.port("up")] = _side_by_side([form.up for _, form in held], 0)
        self._table = table
        self._ranks = np.array(ranks, dtype=np.int64)
        self._owners = np.array(owners, dtype=np.intp)
        self._scales = np.array(scales, dtype=np.float32)
        self._uniform = any(
            part.norms or any(not isinstance(form, LowRank) for forms in part.slots.values() for form in forms)
            for part in parts
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the layers that multipliers leave alone."""
        return sum(array.nbytes for array in self._layers.values())

    def scales(self, multipliers: FloatArray) -> FloatArray:
        """`lora.scales`, multiplier x alpha / rank per lane.

        Args:
            multipliers: [rows or 1, adapters] float32.

        Returns:
            [rows or 1, total_rank] float32.
        """
        return np.ascontiguousarray(multipliers[:, self._owners] * self._scales, dtype=np.float32)

    def feeds(self, multipliers: FloatArray) -> dict[str, Array]:
        """Every graph input that differs from its default.

        Args:
            multipliers: [rows or 1, adapters] float32.

        Raises:
            RequestError: rows differ although an adapter has gains, biases or norms, which cannot differ by row.
        """
        if self._uniform and len(np.unique(multipliers, axis=0)) > 1:
            raise RequestError(
                "an adapter with gains, biases or norms acts on the whole batch: give every image the same multiplier"
            )
        lanes: dict[str, Array] = {SCALES: self.scales(multipliers), RANKS: self._ranks}
        return self._layers | lanes | (self._sums(multipliers[0]) if self._uniform else {})

    def _sums(self, multipliers: FloatArray) -> dict[str, Array]:
        sums: dict[str, Array] = {}

        def add(port: str, start: Array, change: Array) -> None:
            sums[port] = sums.get(port, start) + change

        for multiplier, part in zip(multipliers, self._parts, strict=True):
            for name, forms in part.slots.items():
                slot = self._table.by_name[name]
                for form in forms:
                    if isinstance(form, Gain):
                        excess = form.values - 1
                        add(slot.port(f"gain_{form.axis}"), np.ones_like(excess), multiplier * excess)
                    elif isinstance(form, Bias):
                        add(slot.port("bias"), np.zeros_like(form.delta), multiplier * form.delta)
            for name, norm in part.norms.items():
                for leaf, delta in (("weight", norm.weight), ("bias", norm.bias)):
                    if delta is not None:
                        add(f"{name}.{leaf}", self._norms[f"{name}.{leaf}"], multiplier * delta)
        return {port: np.ascontiguousarray(array, dtype=np.float32) for port, array in sums.items()}


def _side_by_side(arrays: Sequence[FloatArray], axis: int) -> FloatArray:
    """One adapter's arrays are taken as they are; only a mix copies."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
