"""Give every slot its inputs: the plain layer becomes what `lora_edge.reference` defines.

    y = ((x * gain_in) @ W) * gain_out + ((x @ down) * scale) @ up + bias + lora_bias

A pattern per layer and placement writes that down in ONNX operators; all of them compute the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.errors import ExportError
from lora_edge.export.passes.constants import Constants
from lora_edge.slots import RANKS, SCALES, Slot, SlotTable

LEAVES = ("down", "up", "gain_in", "gain_out", "bias")


@dataclass
class Layer:
    """One layer found in the plain graph."""

    slot: Slot
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def last(self) -> ir.Node:
        return self.nodes[-1]


def insert_slots(model: ir.Model, table: SlotTable) -> None:
    """Rewrite every slot's layer.

    Args:
        model: plain, unoptimized, weights named `<slot>.weight`; changed in place.
        table: the slots, in lane order.

    Raises:
        ExportError: a layer is not where the table says.
    """
    if not table.slots:
        return
    graph = model.graph
    constants = Constants(graph)
    for slot, scale in zip(table, _split_scales(graph, table), strict=True):
        layer = _find(graph, slot)  # found one by one: a layer's input may be what the last one was replaced by
        inputs = {leaf: _input(graph, layer.slot, leaf) for leaf in LEAVES}
        tape = Tape()
        pattern = _PATTERNS[layer.slot.kernel is not None, layer.slot.placement]
        replacement = pattern(tape, layer, inputs, scale, constants)
        graph.insert_before(layer.last, list(tape.nodes))
        replacement.shape, replacement.dtype = layer.result.shape, layer.result.dtype
        replacement.name, layer.result.name = layer.result.name, None  # it may be an output of the graph
        ir.convenience.replace_all_uses_with(layer.result, replacement, replace_graph_outputs=True)
        graph.remove(list(reversed(layer.nodes)), safe=True)


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
    rank = f"rank.{slot.name}"
    shape: dict[str, list[int | str]] = {
        "down": [slot.patch, rank],
        "up": [rank, slot.out_features],
        "gain_in": [f"gain_in.{slot.name}"],
        "gain_out": [f"gain_out.{slot.name}"],
        "bias": [slot.out_features],
    }
    return _add_input(graph, slot.port(leaf), shape[leaf], ir.DataType.FLOAT)


def _add_input(graph: ir.Graph, name: str, shape: "list[int | str]", dtype: ir.DataType) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def _split_scales(graph: ir.Graph, table: SlotTable) -> list[ir.Value]:
    """`lora.scales` [rows, total_rank] cut by `lora.ranks` into one [rows, r] per slot."""
    scales = _add_input(graph, SCALES, ["scale_rows", "total_rank"], ir.DataType.FLOAT)
    ranks = _add_input(graph, RANKS, [len(table)], ir.DataType.INT64)
    split = ir.node("Split", [scales, ranks], attributes={"axis": 1}, num_outputs=len(table), name="lora.split")
    for value, slot in zip(split.outputs, table, strict=True):
        value.name = f"lora.{slot.name}.scale"
        value.dtype = ir.DataType.FLOAT
    graph.insert_before(graph[0], [split])
    return list(split.outputs)


Inputs = dict[str, ir.Value]


def _sum_of_biases(tape: Tape, layer: Layer, inputs: Inputs) -> ir.Value:
    return inputs["bias"] if layer.bias is None else tape.op("Add", [layer.bias, inputs["bias"]])


def _transposed(layer: Layer) -> ir.Value:
    """The weight of a Linear as [in, out], which is how onnxruntime multiplies; written when the file is."""
    held = layer.weight.const_value
    assert held is not None
    out_features, in_features = held.shape

    def turned() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(held.numpy().T), name=layer.weight.name)

    shape = ir.Shape([in_features, out_features])
    layer.weight.const_value = ir.LazyTensor(turned, dtype=held.dtype, shape=shape, name=layer.weight.name)
    layer.weight.shape = shape
    return layer.weight


def _linear_activation(tape: Tape, layer: Layer, inputs: Inputs, scale: ir.Value, constant: Constants) -> ir.Value:
    if len(layer.x.shape or ()) == 3:
        scale = tape.op("Unsqueeze", [scale, constant(1)])
    base = tape.op("MatMul", [tape.op("Mul", [layer.x, inputs["gain_in"]]), _transposed(layer)])
    base = tape.op("Mul", [base, inputs["gain_out"]])
    lanes = tape.op("Mul", [tape.op("MatMul", [layer.x, inputs["down"]]), scale])
    update = tape.op("MatMul", [lanes, inputs["up"]])
    return tape.op("Add", [tape.op("Add", [base, update]), _sum_of_biases(tape, layer, inputs)])


def _linear_weight(tape: Tape, layer: Layer, inputs: Inputs, scale: ir.Value, constant: Constants) -> ir.Value:
    gain_in = tape.op("Unsqueeze", [inputs["gain_in"], constant(1)])
    gained = tape.op("Mul", [tape.op("Mul", [_transposed(layer), gain_in]), inputs["gain_out"]])
    lanes = tape.op("Mul", [inputs["down"], tape.op("Unsqueeze", [scale, constant(1)])])  # [rows, in, r]
    weight = tape.op("Add", [gained, tape.op("MatMul", [lanes, inputs["up"]])])
    return tape.op("Add", [tape.op("MatMul", [layer.x, weight]), _sum_of_biases(tape, layer, inputs)])


def _conv_activation(tape: Tape, layer: Layer, inputs: Inputs, scale: ir.Value, constant: Constants) -> ir.Value:
    kh, kw = layer.slot.kernel or (1, 1)
    attributes = dict(layer.last.attributes)
    per_channel = constant(1, 2)
    gain_in = tape.op("Unsqueeze", [inputs["gain_in"], per_channel])
    gain_out = tape.op("Unsqueeze", [inputs["gain_out"], per_channel])
    base = tape.op("Conv", [tape.op("Mul", [layer.x, gain_in]), layer.weight], attributes=attributes)
    base = tape.op("Mul", [base, gain_out])
    turned = tape.op("Transpose", [inputs["down"]], attributes={"perm": [1, 0]})
    down = tape.op("Reshape", [turned, constant(0, layer.slot.in_features, kh, kw)])  # a 0 keeps the rank, also rank 0
    lanes = tape.op("Conv", [layer.x, down], attributes=attributes)
    lanes = tape.op("Mul", [lanes, tape.op("Unsqueeze", [scale, constant(2, 3)])])
    # onnxruntime leaves the output of a Conv without input channels uninitialized, so one more lane of the size of a
    # single channel, with zeros for its up, keeps rank 0 defined; it adds 0 to the sum.
    lanes = tape.op("Concat", [lanes, tape.op("Slice", [base, constant(0), constant(1), constant(1)])], {"axis": 1})
    up = tape.op("Concat", [inputs["up"], constant.zeros(1, layer.slot.out_features)], {"axis": 0})
    up = tape.op("Unsqueeze", [tape.op("Transpose", [up], attributes={"perm": [1, 0]}), constant(2, 3)])
    update = tape.op("Conv", [lanes, up, _sum_of_biases(tape, layer, inputs)], attributes={"kernel_shape": [1, 1]})
    return tape.op("Add", [base, update])


Pattern = Callable[[Tape, Layer, Inputs, ir.Value, Constants], ir.Value]

_PATTERNS: dict[tuple[bool, str], Pattern] = {  # (is a Conv, placement)
    (False, "activation"): _linear_activation,
    (False, "weight"): _linear_weight,
    (True, "activation"): _conv_activation,
}
