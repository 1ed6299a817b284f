"""The graphs of a component: one trace, one file of weights, a graph for each scope and each program that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from lora_edge.export.patterns import lowrank, openvino, whole
from lora_edge.export.patterns.pattern import Pattern
from lora_edge.export.patterns.plain import plain
from lora_edge.scope import ALL, LINEAR, LOWRANK, NONE, Scope
from lora_edge.slots import Slot, SlotTable

Chooser = Callable[[Slot], Pattern]


@dataclass(frozen=True)
class Variant:
    """One graph.

    Attributes:
        runs_on: the backend that it is written for.
        scope: what updates it takes.
        file: its name in the component's folder.
        pattern: slot -> how the layer is written.
        optional: whether adapter inputs have defaults; OpenVINO reads plain inputs alone.
    """

    runs_on: str
    scope: Scope
    file: str
    pattern: Chooser
    optional: bool = True


def _onnxruntime(module: ModuleType, scope: Scope) -> Chooser:
    """By (is a Conv, placement); layers outside the scope stay plain."""
    patterns: Mapping[tuple[bool, str], Pattern] = {
        (False, "activation"): module.linear_activation,
        (False, "weight"): module.linear_weight,
        (True, "activation"): module.conv_activation,
    }
    return lambda slot: patterns[slot.kernel is not None, slot.placement] if scope.leaves(slot) else plain


def _openvino(linear: Pattern, conv: Pattern, scope: Scope) -> Chooser:
    """By whether it is a Conv."""
    return lambda slot: (linear if slot.kernel is None else conv) if scope.leaves(slot) else plain


def _for_openvino(scope: Scope, linear: Pattern = openvino.linear, conv: Pattern = openvino.conv) -> Variant:
    return Variant("openvino", scope, f"openvino_{scope.name}.onnx", _openvino(linear, conv, scope), optional=False)


VARIANTS = (  # the first one writes the weights, the others lie over them
    Variant("onnxruntime", ALL, "model.onnx", _onnxruntime(whole, ALL)),
    Variant("onnxruntime", LOWRANK, "model_lowrank.onnx", _onnxruntime(lowrank, LOWRANK)),
    Variant("onnxruntime", LINEAR, "model_linear.onnx", _onnxruntime(lowrank, LINEAR)),
    _for_openvino(ALL, whole.linear_activation, openvino.whole_conv),
    _for_openvino(LOWRANK),
    _for_openvino(LINEAR),
)
WITHOUT = Variant("onnxruntime", NONE, "model_plain.onnx", lambda slot: plain)
"""The limit that benchmarks compare with; not part of bundles."""


def variants(table: SlotTable) -> tuple[Variant, ...]:
    """Those that a component is exported with: text encoders are run once an image, and one graph for each backend will
    do; without slots, one for all."""
    if not table.slots:
        return VARIANTS[:1]
    every = any(slot.kernel for slot in table)
    return tuple(variant for variant in VARIANTS if every or variant.scope is ALL)
