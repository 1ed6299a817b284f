"""(layer + update) + other -> (layer + other) + update, where a pattern says that this is faster.

OpenVINO adds what goes round a convolution while it computes it, but not if an update stands between the two, which
then also has to be laid out as convolutions want it.
"""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import LAST
from lora_edge.export.variants import Variant
from lora_edge.slots import SlotTable


def add_updates_last(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Rewrite in place every marked Add whose result only another Add takes."""
    for node in [node for node in model.graph if LAST in node.meta]:
        uses, (layer, update) = node.outputs[0].uses(), node.inputs
        if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
            continue
        ((outer, place),) = uses
        inner = ir.node("Add", [layer, outer.inputs[1 - place]])
        model.graph.insert_before(outer, inner)
        outer.replace_input_with(0, inner.outputs[0])
        outer.replace_input_with(1, update)
        model.graph.remove(node, safe=True)
