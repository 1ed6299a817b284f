"""How adapters lie in the inputs of a backend's graphs: one small class per contract, chosen by the backend."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from lora_edge.adapter import Adapter
from lora_edge.arrays import Array, FloatArray
from lora_edge.bundle import Bundle
from lora_edge.forms import ComponentForms
from lora_edge.mix import Mix


class Laid(Protocol):
    """An ordered set of adapters, laid out for one component."""

    copied: int
    """Bytes that were moved to lay them out."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that multipliers leave alone."""

    @property
    def resting(self) -> dict[str, Array]:
        """The graph inputs that multipliers leave alone; the same arrays every time."""

    def moving(self, strengths: FloatArray | float) -> dict[str, Array]:
        """The graph inputs that multipliers change.

        Args:
            strengths: [rows or 1, adapters, places or 1] float32; or one number for a single adapter, as a slider
                gives it: an array of it takes as long to make as all that follows.

        Raises:
            RequestError: rows differ where they cannot, or a multiplier is beyond what the graph can hold.
        """


class Layout(Protocol):
    """How adapters lie in the inputs of a backend's graphs.

    Attributes:
        folds_blocks: whether block weights are part of what rests (strengths then have one place), not of what moves.
        apart: why images run apart, for a person.
    """

    folds_blocks: bool
    apart: str

    def alone(self, part: ComponentForms) -> bool:
        """Whether something in it acts on a whole batch alike."""

    def fit(self, adapter: Adapter, strict: bool) -> Adapter:
        """The adapter as these graphs can take it, its report saying what that cost.

        Args:
            strict: refuse what they cannot take; else it is left out and reported.

        Raises:
            AdapterMismatch: something that they have no input for.
            RankTooLarge: more lanes than they have.
        """

    def lay(self, component: str, parts: Sequence[tuple[str, ComponentForms]]) -> Laid:
        """Lay adapters out, in this order.

        Args:
            parts: name of each adapter and what it changes in the component.

        Raises:
            AdapterMismatch, RankTooLarge: as `fit`, of all of them together.
        """


class SideBySide:
    """The graph contract as ONNX has it (`lora_edge.mix`): every slot has the rank that its adapters need."""

    folds_blocks = False
    apart = "adapters with gains, biases or norms differ"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._norms: dict[str, Mapping[str, FloatArray]] = {}

    def alone(self, part: ComponentForms) -> bool:
        return part.uniform

    def fit(self, adapter: Adapter, strict: bool) -> Adapter:
        return adapter

    def lay(self, component: str, parts: Sequence[tuple[str, ComponentForms]]) -> Mix:
        forms = [part for _, part in parts]
        if any(part.norms for part in forms) and component not in self._norms:
            self._norms[component] = self._bundle.component(component).norms()
        table = self._bundle.component(component).table
        return Mix(table, forms, self._norms.get(component), partial(self._bundle.weight, component))
