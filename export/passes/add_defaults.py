"""Defaults: every adapter input becomes an overridable initializer, and so do the parameters of norms.

A graph input and an initializer of the same name is ONNX's optional input; with no adapter the graph then runs with
plain Stable Diffusion inputs.
"""

import onnx_ir as ir

from lora_edge.export.variants import Variant
from lora_edge.neutral import defaults
from lora_edge.scope import norm_ports
from lora_edge.slots import SlotTable


def add_defaults(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Give each adapter input the value that changes nothing, where the variant has optional inputs at all."""
    graph = model.graph
    if variant.scope.norms:
        graph.inputs.extend(graph.initializers[name] for name in norm_ports(table.norms))
    if not variant.optional:
        for value in graph.inputs:
            graph.initializers.pop(value.name or "", None)
        return
    neutral = defaults(table, {}, {value.name or "": value.shape or () for value in graph.inputs})
    for value in graph.inputs:
        if value.name in neutral:
            value.const_value = ir.tensor(neutral[value.name], name=value.name)
            graph.initializers.add(value)
