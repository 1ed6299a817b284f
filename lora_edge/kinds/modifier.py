"""Modifiers: leaves that change what another kind does, such as a DoRA magnitude beside a LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lora_edge.forms import Form, NormDelta
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update

Forms = tuple[Form, ...] | NormDelta


@dataclass(frozen=True)
class Modifier:
    """A change of another kind's forms.

    Attributes:
        name: such as "dora"; a LoRA with it is of the kind "lora+dora".
        spellings: leaf -> how files spell it.
        signature: leaves of which any one identifies the modifier.
        modify: the tensors of one layer and the forms of its kind -> the forms instead of them.
        size: shapes, the layer and the size of the kind's forms -> the size instead; raises as `Kind.size`.
        alone: whether its leaves mean something beside no kind at all.
    """

    name: str
    spellings: Mapping[str, tuple[str, ...]]
    signature: frozenset[str]
    modify: Callable[[Update, Forms], Forms]
    size: Callable[[Shapes, Layer, Size], Size] = lambda shapes, layer, size: size
    alone: bool = False


NOTHING = Kind("", {}, frozenset(), lambda update: NormDelta() if len(update.shape) == 1 else ())


def modified(kind: Kind, modifier: Modifier) -> Kind:
    """The kind with the modifier around it."""

    def form(update: Update) -> Forms:
        modifier.size(update.shapes, update.shape, kind.size(update.shapes, update.shape))
        return modifier.modify(update, kind.form(update))

    return replace(
        kind,
        name=f"{kind.name}+{modifier.name}" if kind.name else modifier.name,
        spellings={**kind.spellings, **modifier.spellings},
        signature=kind.signature | modifier.signature,
        form=form,
        size=lambda shapes, layer: modifier.size(shapes, layer, kind.size(shapes, layer)),
    )
