"""What Core ML packages can take of an adapter, and adapters laid out for them (`runtime.layout.Layout`)."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lora_edge.adapter import Adapter
from lora_edge.bundle import Bundle
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank
from lora_edge.runtime.coreml.cut import cut
from lora_edge.runtime.coreml.lanes import Bucket, Named, check_rank, width_of
from lora_edge.runtime.coreml.manifest import Packages
from lora_edge.slots import SlotTable

log = logging.getLogger("lora_edge")

SHOWN = 3  # layers that a sentence names
NOT_LANES: dict[type[Form], str] = {Gain: "gains", Bias: "biases"}
AS_LANES = (
    "which the Core ML packages have no inputs for; make a LoRA of it with `lora-edge resize --bundle`, or use the "
    "backend onnxruntime"
)


@dataclass(frozen=True)
class Refused:
    """What packages cannot take of an adapter in one component.

    Attributes:
        what: of which sort.
        layers: where.
        advice: why, and what to do about it.
    """

    what: str
    layers: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        names = ", ".join(self.layers[:SHOWN])
        more = f" and {len(self.layers) - SHOWN} more" if len(self.layers) > SHOWN else ""
        return f"{self.what} on {names}{more}, {self.advice}"


class FixedRank:
    """Lanes alone, on the slots of the packages, R of them for all adapters together.

    Args:
        fit_rank: cut what has more lanes by SVD in place of refusing it.
    """

    folds_blocks = True
    apart = "multipliers of adapters differ, of which a Core ML package takes one set at a time"

    def __init__(self, bundle: Bundle, packages: Packages, fit_rank: bool = False) -> None:
        self._bundle, self._packages, self._fit_rank = bundle, packages, fit_rank

    def alone(self, part: ComponentForms) -> bool:
        return True

    def fit(self, adapter: Adapter, strict: bool) -> Adapter:
        parts, told = dict(adapter.components), []
        for component, part in adapter.components.items():
            refused = list(self._refused(component, part))
            if refused and strict:
                raise _mismatch(adapter.name, component, refused)
            if refused:
                part = self._without(component, part)
                told += [f"left out of the {component}: {reason}" for reason in refused]
            [(_, parts[component])], lost = self._fitting(component, [(adapter.name, part)])
            told += [f"{component}: {sentence.removeprefix(adapter.name + ': ')}" for sentence in lost]
        if not told:
            return adapter
        kept = {component: part for component, part in parts.items() if part.slots}
        if not kept and not adapter.embeddings:
            raise AdapterMismatch(f"{adapter.name} changes nothing that the Core ML packages have: {'; '.join(told)}")
        report = replace(adapter.report, warnings=(*adapter.report.warnings, *told))
        return replace(adapter, components=kept, report=report)

    def lay(self, component: str, parts: Sequence[Named]) -> Bucket:
        for name, part in parts:
            if refused := list(self._refused(component, part)):
                raise _mismatch(name, component, refused)
        fitting, lost = self._fitting(component, parts)
        for sentence in lost:
            log.warning("%s: %s", component, sentence)
        return Bucket(self._packages.component(component), self._table(component), fitting, self._packages.rank)

    def _fitting(self, component: str, parts: Sequence[Named]) -> tuple[Sequence[Named], list[str]]:
        """The adapters as they fit into the lanes, and what that lost.

        Raises:
            RankTooLarge: they do not, and may not be cut.
        """
        rank = self._packages.rank
        if self._fit_rank and len(parts) <= rank < sum(width_of(part) for _, part in parts):
            return cut(parts, rank)
        check_rank(component, parts, rank)
        return parts, []

    def _table(self, component: str) -> SlotTable:
        return self._bundle.component(component).table

    def _refused(self, component: str, part: ComponentForms) -> Iterator[Refused]:
        """Everything that the packages have no input for."""
        for sort, word in NOT_LANES.items():
            if names := tuple(name for name, forms in part.slots.items() if any(isinstance(f, sort) for f in forms)):
                yield Refused(word, names, AS_LANES)
        if part.norms:
            yield Refused("changes of norms", tuple(part.norms), AS_LANES)
        known, table = self._packages.component(component).slots, self._table(component)
        lacking = [name for name in part.slots if name not in known]
        wide = tuple(name for name in lacking if table.by_name[name].kernel not in (None, (1, 1)))
        if wide:
            yield Refused("lanes", wide, "convolutions without adapter inputs here; export with --conv-slots")
        if narrow := tuple(name for name in lacking if name not in wide):
            yield Refused(
                "lanes", narrow, "which have no adapter inputs in these packages; use the backend onnxruntime"
            )

    def _without(self, component: str, part: ComponentForms) -> ComponentForms:
        """What is left of an adapter: slots that the packages have and on which it has lanes alone."""
        known = self._packages.component(component).slots
        return ComponentForms(
            {
                name: forms
                for name, forms in part.slots.items()
                if name in known and all(isinstance(form, LowRank) for form in forms)
            }
        )


def _mismatch(name: str, component: str, refused: Sequence[Refused]) -> AdapterMismatch:
    return AdapterMismatch(f"{name} has in the {component}: {'; '.join(map(str, refused))}")
