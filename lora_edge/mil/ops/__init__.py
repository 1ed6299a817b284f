"""Every operation that is evaluated, by its name in MIL. Source: the operation sets of coremltools (iOS15 to iOS18).

An operation is a function of its parameters, named as MIL names them, in float32, integers or booleans; those whose
result can be larger than their operands also take `declared`, the shapes that the program declares, and refuse others
before they take memory.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from lora_edge.mil.ops import activation, constexpr, conv, elementwise, gather, layout, linear, norm, reduce
from lora_edge.mil.ops.shapes import Family, Op

FAMILIES = (elementwise, activation, linear, conv, norm, reduce, layout, gather, constexpr)
OPS: Family = {name: op for family in FAMILIES for name, op in family.OPS.items()}
LISTS = frozenset({"values"})  # parameters that are bound to several values
DECLARED = "declared"


@dataclass(frozen=True)
class Signature:
    """What an operation takes.

    Attributes:
        op: the function.
        required, optional: names of parameters.
        declared: whether it wants the declared shapes.
    """

    op: Op
    required: frozenset[str]
    optional: frozenset[str]
    declared: bool


def _signature(op: Op) -> Signature:
    told = {name: parameter.default for name, parameter in inspect.signature(op).parameters.items() if name != DECLARED}
    required = frozenset(name for name, default in told.items() if default is inspect.Parameter.empty)
    return Signature(op, required, frozenset(told) - required, DECLARED in inspect.signature(op).parameters)


SIGNATURES: Mapping[str, Signature] = {name: _signature(op) for name, op in OPS.items()}
