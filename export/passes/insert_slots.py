"""Give every slot its inputs: the plain layer becomes what `lora_edge.reference` defines, in a variant's patterns."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.errors import ExportError
from lora_edge.export.constants import Constants
from lora_edge.export.patterns.lanes import lanes
from lora_edge.export.patterns.pattern import Layer, Site
from lora_edge.export.variants import Variant
from lora_edge.slots import RANKS, SCALES, Slot, SlotTable


def insert_slots(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Rewrite every slot's layer.

    Args:
        model: plain, unoptimized, weights named `<slot>.weight`; changed in place.
        table: the slots, in lane order.
        variant: which inputs they have, and how they are written.

    Raises:
        ExportError: a layer is not where the table says.
    """
    if not table.slots:
        return
    graph, constant = model.graph, Constants(model.graph)
    rows = graph.inputs[-1]  # a prompt's states stay from step to step, and so does what is made for their rows
    scales = _add_input(graph, SCALES, ["scale_rows", "total_rank"], ir.DataType.FLOAT)
    ranks = _add_input(graph, RANKS, [len(table)], ir.DataType.INT64)
    for slot, own in zip(table, lanes(graph, constant, rows, scales, ranks, len(table)), strict=True):
        layer = _find(graph, slot)  # found one by one: a layer's input may be what the last one was replaced by
        inputs = {leaf: _input(graph, slot, leaf) for leaf in variant.scope.leaves(slot)}
        tape = Tape()
        replacement = variant.pattern(slot)(Site(tape, layer, inputs, own, constant))
        graph.insert_before(layer.last, list(tape.nodes))
        replacement.shape, replacement.dtype = layer.result.shape, layer.result.dtype
        replacement.name, layer.result.name = layer.result.name, None  # it may be an output of the graph
        ir.convenience.replace_all_uses_with(layer.result, replacement, replace_graph_outputs=True)
        graph.remove(list(reversed(layer.nodes)), safe=True)
    if not any(variant.scope.leaves(slot) for slot in table):
        graph.inputs[:] = [
            value for value in graph.inputs if value not in (scales, ranks)
        ]  # the optimizer drops the rest


def _find(graph: ir.Graph, slot: Slot) -> Layer:
    """The plain layer: the consumer of `<slot>.weight`, and the Add of its bias."""
    weight = graph.initializers.get(f"{slot.name}.weight")
    if weight is None:
        raise ExportError(f"the traced graph has no weight of slot {slot.name}")
    (first,) = weight.consumers() if len(weight.consumers()) == 1 else (None,)
    if first is not None and first.op_type in ("Conv", "Gemm"):
        x, bias = first.inputs[0], first.inputs[2] if len(first.inputs) > 2 else None
        assert x is not None
        return Layer(slot, x, weight, bias, first.outputs[0], (first,))
    if first is not None and first.op_type == "Transpose":
        (matmul,) = first.outputs[0].consumers()
        nodes: tuple[ir.Node, ...] = (first, matmul)
        x, result, bias = matmul.inputs[0], matmul.outputs[0], None
        assert x is not None
        if slot.has_bias:
            bias = graph.initializers[f"{slot.name}.bias"]
            (add,) = result.consumers()
            if add.op_type != "Add" or bias not in add.inputs:
                raise ExportError(f"the bias of slot {slot.name} is not added right after its product")
            result, nodes = add.outputs[0], (*nodes, add)
        return Layer(slot, x, weight, bias, result, nodes)
    raise ExportError(f"the weight of slot {slot.name} is used by something other than its layer")


def _input(graph: ir.Graph, slot: Slot, leaf: str) -> ir.Value:
    return _add_input(graph, slot.port(leaf), slot.axes[leaf], ir.DataType.FLOAT)


def _add_input(graph: ir.Graph, name: str, shape: Sequence[int | str], dtype: ir.DataType) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value
