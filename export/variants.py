"""The graphs of a component: one trace, one file of weights, a graph for each scope and each program that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lora_edge.export.patterns import lowrank, openvino, whole
from lora_edge.export.patterns.pattern import Pattern
from lora_edge.export.patterns.plain import plain
from lora_edge.export.recipes import Recipe
from lora_edge.export.slotted import Form
from lora_edge.scope import ALL, LINEAR, LOWRANK, NONE, Scope
from lora_edge.slots import Placement, Slot, SlotTable

Chooser = Callable[[Slot], Pattern]
Kind: TypeAlias = Literal["linear", "pointwise", "conv"]
Patterns = Mapping[tuple[Kind, Placement], Pattern]


@dataclass(frozen=True)
class Variant:
    """One graph.

    Attributes:
        runs_on: the backend that it is written for.
        scope: what updates it takes.
        file: its name in the component's folder.
        pattern: slot -> how the layer is written.
        forms: as what it is written where something stays from run to run; whole where nothing does.
        optional: whether adapter inputs have defaults; OpenVINO reads plain inputs alone.
        converts: whether it may compute in another precision than float32, which inputs are given in.
    """

    runs_on: str
    scope: Scope
    file: str
    pattern: Chooser
    forms: tuple[Form, ...] = ("whole",)
    optional: bool = True
    converts: bool = False

    def forms_of(self, recipe: Recipe) -> tuple[Form, ...]:
        """As what it is written for a component."""
        return self.forms if recipe.varying else ("whole",)

    def part(self, name: str) -> str:
        """The name of the file of one of its parts, see `export.parts`."""
        return f"{self.file.removesuffix('.onnx')}_{name}.onnx"


def _patterns(activation: Pattern, weight: Pattern, conv: Pattern, pointwise: Pattern | None = None) -> Patterns:
    """By the kind of layer and its placement; a 1x1 Conv is as any Conv, unless it has a pattern of its own."""
    return {
        ("linear", "activation"): activation,
        ("linear", "weight"): weight,
        ("pointwise", "activation"): pointwise or conv,
        ("pointwise", "weight"): pointwise or conv,
        ("conv", "activation"): conv,
    }


def _kind(slot: Slot) -> Kind:
    kinds: Mapping[tuple[int, int] | None, Kind] = {None: "linear", (1, 1): "pointwise"}
    return kinds.get(slot.kernel, "conv")


BARE_OF = {  # the backend that they are written for -> patterns of layers that take nothing
    "onnxruntime": _patterns(plain, plain, plain),
    "openvino": _patterns(openvino.bare, openvino.bare, plain, openvino.pointwise_bare),
}
LOWRANK_OF = {  # the same, of layers that take lanes alone
    "onnxruntime": _patterns(lowrank.linear_activation, lowrank.linear_weight, lowrank.conv_activation),
    "openvino": _patterns(openvino.linear, openvino.linear_weight, openvino.conv, openvino.pointwise),
}
WHOLE_OF = {  # the same, of layers that take everything
    "onnxruntime": _patterns(whole.linear_activation, whole.linear_weight, whole.conv_activation),
    "openvino": _patterns(whole.linear_activation, whole.linear_weight, openvino.whole_conv),
}


def _chooser(patterns: Patterns, bare: Patterns, scope: Scope) -> Chooser:
    return lambda slot: (patterns if scope.leaves(slot) else bare)[_kind(slot), slot.placement]


def _variant(runs_on: str, scope: Scope, file: str, *forms: Form) -> Variant:
    patterns = (WHOLE_OF if scope is ALL else LOWRANK_OF)[runs_on]
    chooser, theirs = _chooser(patterns, BARE_OF[runs_on], scope), runs_on == "openvino"
    return Variant(runs_on, scope, file, chooser, forms, optional=not theirs, converts=theirs)


VARIANTS = (  # the first one writes the weights, the others lie over them; what the contract names is whole
    _variant("onnxruntime", ALL, "model.onnx", "whole"),
    _variant("onnxruntime", LOWRANK, "model_lowrank.onnx", "parts"),
    _variant("onnxruntime", LINEAR, "model_linear.onnx", "whole", "parts"),
    _variant("openvino", ALL, "openvino_all.onnx", "parts"),
    _variant("openvino", LOWRANK, "openvino_lowrank.onnx", "parts"),
    _variant("openvino", LINEAR, "openvino_linear.onnx", "parts"),
)
WITHOUT = (_variant("onnxruntime", NONE, "model.onnx", "whole"), _variant("openvino", NONE, "openvino.onnx", "whole"))
"""The limits that benchmarks compare with, in folders of their own; not part of bundles."""


def variants(table: SlotTable) -> tuple[Variant, ...]:
    """Those that a component is exported with: text encoders are run once an image, and one graph for each backend will
    do; without slots, one for all."""
    if not table.slots:
        return VARIANTS[:1]
    every = any(slot.kernel for slot in table)
    return tuple(variant for variant in VARIANTS if every or variant.scope is ALL)
