"""Scopes: how much of the contract a graph takes. Narrow graphs are faster; all lie over the same weights.

A bundle has one graph for each scope that its component was exported with; the engine runs the narrowest that serves
the adapters loaded so far, as adapters with gains, biases or norms are rare.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lora_edge.forms import Bias, ComponentForms, Form, Gain
from lora_edge.slots import Slot, SlotTable

LANES = ("down", "up")
WHOLE = (*LANES, "gain_in", "gain_out", "bias")


@dataclass(frozen=True)
class Scope:
    """Which updates a graph takes.

    Attributes:
        name: as in `Engine.open(slots=...)`.
        leaves: slot -> the inputs that it has there; none where it takes no update.
        norms: whether the parameters of norms are inputs.
        takes: for a person, what adapters may change.
    """

    name: str
    leaves: Callable[[Slot], tuple[str, ...]]
    norms: bool
    takes: str

    def ports(self, table: SlotTable) -> frozenset[str]:
        """Names of the adapter inputs that a component's graph has; those that are no slot's or norm's left out."""
        slots = {slot.port(leaf) for slot in table for leaf in self.leaves(slot)}
        return frozenset(slots.union(norm_ports(table.norms) if self.norms else ()))


def norm_ports(norms: Iterable[str]) -> list[str]:
    """Names of the parameters of norms as graph inputs, in order."""
    return [f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")]


def ports_of(part: ComponentForms, table: SlotTable) -> set[str]:
    """Names of the adapter inputs that an adapter's changes go into."""
    slots = {
        table.by_name[name].port(leaf) for name, forms in part.slots.items() for form in forms for leaf in _leaves(form)
    }
    return slots.union(norm_ports(part.norms))


def _leaves(form: Form) -> tuple[str, ...]:
    if isinstance(form, Gain):
        return (f"gain_{form.axis}",)
    return ("bias",) if isinstance(form, Bias) else LANES


def _is_linear(slot: Slot) -> bool:
    return slot.kernel in (None, (1, 1))


NONE = Scope("none", lambda slot: (), False, "nothing")
LINEAR = Scope(
    "linear", lambda slot: LANES if _is_linear(slot) else (), False, "low-rank updates of Linear and 1x1 layers"
)
LOWRANK = Scope("lowrank", lambda slot: LANES, False, "low-rank updates of every layer")
ALL = Scope("all", lambda slot: WHOLE, True, "everything")

SCOPES: Mapping[str, Scope] = {scope.name: scope for scope in (LINEAR, LOWRANK, ALL)}
"""From narrow to wide; what a wider one takes includes what a narrower one does."""
