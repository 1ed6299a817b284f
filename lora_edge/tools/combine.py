"""Several adapters on one layer, summed: W' = W + sum multiplier (W'_1 - W), whatever their kinds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array
from lora_edge.errors import AdapterMismatch, RequestError
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank, NormDelta
from lora_edge.multiplier import is_finite
from lora_edge.reference import effective_weight
from lora_edge.slots import Slot, SlotTable

Part = tuple[float, ComponentForms]  # multiplier, what the adapter changes in a component
Held = Sequence[tuple[float, tuple[Form, ...]]]  # (multiplier, forms) of each adapter that changes a slot

_TAGGED = re.compile(r"(.+?)((?::[+-]?(?:\d+\.?\d*|\.\d+)){1,2})")


@dataclass(frozen=True)
class Multiplied:
    """An adapter and how strongly it acts.

    Attributes:
        adapter: fitted to the base.
        text: multiplier of the text encoders.
        unet: multiplier of the UNet.

    Raises:
        RequestError: a multiplier is not finite.
    """

    adapter: Adapter
    text: float = 1.0
    unet: float = 1.0

    def __post_init__(self) -> None:
        if not (is_finite(self.text) and is_finite(self.unet)):
            raise RequestError(f"a multiplier of {self.adapter.name} is not a finite number")

    def part(self, component: str) -> Part:
        """The multiplier of a component and what changes there."""
        multiplier = self.text if component.startswith("text_encoder") else self.unet
        return multiplier, self.adapter.components.get(component, ComponentForms())

    def __str__(self) -> str:
        numbers = (self.text,) if self.text == self.unet else (self.text, self.unet)
        return ":".join((self.adapter.name, *(f"{number:g}" for number in numbers)))


def parse_multiplied(text: str) -> tuple[str, float, float]:
    """`FILE`, `FILE:multiplier` or `FILE:te:unet`, as in a prompt's tag -> path, te, unet; 1 where nothing is said."""
    if found := _TAGGED.fullmatch(text):
        numbers = [float(number) for number in found[2][1:].split(":")]
        return found[1], numbers[0], numbers[-1]
    return text, 1.0, 1.0


def check_fitted(adapters: Sequence[Multiplied], tables: Sequence[SlotTable]) -> None:
    """Refuse adapters that change what the tables do not have.

    Raises:
        AdapterMismatch: one was fitted to another base.
    """
    places = {(table.component, path) for table in tables for path in (*table.by_name, *table.norms)}
    for adapter in (each.adapter for each in adapters):
        for component, part in adapter.components.items():
            for path in (*part.slots, *part.norms):
                if (component, path) not in places:
                    where = adapter.path or adapter.name
                    raise AdapterMismatch(
                        f"{where} changes {path} of {component}, which the base lacks; fit it to this one"
                    )


def forms_of(parts: Sequence[Part], slot: str) -> Held:
    """(multiplier, forms) of the adapters that change a slot at all."""
    return [(multiplier, part.slots[slot]) for multiplier, part in parts if multiplier and slot in part.slots]


def needs_weight(held: Held) -> bool:
    """Whether a change depends on the base weight."""
    return any(isinstance(form, Gain) for _, forms in held for form in forms)


def changes_weight(held: Held) -> bool:
    """Whether a change is more than one of the bias."""
    return any(not isinstance(form, Bias) for _, forms in held for form in forms)


def lanes(held: Held) -> tuple[Array, Array]:
    """Side by side with multipliers and scales in `up`: down [patch, lanes], up [lanes, out]; only without gains."""
    found = [(multiplier * form.scale, form) for multiplier, forms in held for form in forms
             if isinstance(form, LowRank)]  # fmt: skip
    if not found:
        return np.zeros((1, 0)), np.zeros((0, 1))
    down = np.concatenate([form.down for _, form in found], axis=1)
    up = np.concatenate([np.float64(factor) * form.up for factor, form in found], axis=0)
    return down, up


def weight_change(slot: Slot, held: Held, weight: Array | None) -> Array:
    """sum multiplier (W'_1 - W), float64, shaped as the weight.

    Args:
        slot: the layer.
        held: (multiplier, forms) of each adapter.
        weight: the base's; needed where `needs_weight` says so.
    """
    start = np.zeros(slot.weight_shape) if weight is None else weight.astype(np.float64)
    changed = np.zeros(slot.weight_shape)
    for multiplier, forms in held:
        inputs, scale = _inputs(forms)
        changed += multiplier * (effective_weight(slot, start, inputs, scale) - start)
    return changed


def _inputs(forms: Sequence[Form]) -> tuple[dict[str, Array], Array]:
    """One adapter's forms as `effective_weight` takes them, at multiplier 1, float64."""
    inputs: dict[str, Array] = {}
    for form in forms:
        if isinstance(form, Gain):
            leaf = f"gain_{form.axis}"
            inputs[leaf] = inputs.get(leaf, np.float64(1)) + (form.values.astype(np.float64) - 1)
    found = [form for form in forms if isinstance(form, LowRank)]
    if found:
        inputs["down"] = np.concatenate([form.down.astype(np.float64) for form in found], axis=1)
        inputs["up"] = np.concatenate([form.up.astype(np.float64) for form in found], axis=0)
    return inputs, np.array([form.scale for form in found for _ in range(form.rank)])


def bias_change(held: Held) -> Array | None:
    """The sum of what the adapters add to the bias, [out] float64; None where none does."""
    found = [multiplier * form.delta.astype(np.float64) for multiplier, forms in held for form in forms
             if isinstance(form, Bias)]  # fmt: skip
    return np.sum(found, axis=0) if found else None


def norm_changes(parts: Sequence[Part]) -> dict[str, Mapping[str, Array]]:
    """Norm -> leaf (`weight`, `bias`) -> the sum of what the adapters add to it, [channels] float64."""
    made: dict[str, dict[str, Array]] = {}
    for multiplier, part in parts:
        for name, delta in part.norms.items() if multiplier else ():
            for leaf, change in _leaves(delta).items():
                sums = made.setdefault(name, {})
                sums[leaf] = sums.get(leaf, 0.0) + multiplier * change
    return dict(made)


def _leaves(delta: NormDelta) -> dict[str, Array]:
    both = {"weight": delta.weight, "bias": delta.bias}
    return {leaf: change.astype(np.float64) for leaf, change in both.items() if change is not None}
