"""Modifiers: leaves that change what another kind does, such as a DoRA magnitude beside a LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lora_edge.forms import Form, NormDelta
from lora_edge.kinds.kind import Kind, Update


@dataclass(frozen=True)
class Modifier:
    """A change of another kind's forms.

    Attributes:
        name: such as "dora"; a LoRA with it is of the kind "lora+dora".
        spellings: leaf -> how files spell it.
        signature: leaves of which any one identifies the modifier.
        modify: the tensors of one layer and the forms of its kind -> the forms instead of them.
    """

    name: str
    spellings: Mapping[str, tuple[str, ...]]
    signature: frozenset[str]
    modify: Callable[[Update, tuple[Form, ...] | NormDelta], tuple[Form, ...] | NormDelta]


def modified(kind: Kind, modifier: Modifier) -> Kind:
    """The kind with the modifier around it."""

    def form(update: Update) -> tuple[Form, ...] | NormDelta:
        return modifier.modify(update, kind.form(update))

    return replace(
        kind,
        name=f"{kind.name}+{modifier.name}",
        spellings={**kind.spellings, **modifier.spellings},
        signature=kind.signature | modifier.signature,
        form=form,
    )
