"""Put quantized weights into a finished graph, in place of the float32 ones.

Not one of PASSES: it comes after them, since the optimizer would unpack what it can.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.arrays import Array
from lora_edge.blockwise import Blockwise
from lora_edge.errors import ExportError
from lora_edge.export.constants import Constants
from lora_edge.export.quantize import Way
from lora_edge.slots import Slot, SlotTable

END = 2**31 - 1  # of a Slice that goes as far as there is
FLOAT32 = 1  # accuracy_level of MatMulNBits: the type that products are computed in


def leaves(slot: Slot) -> tuple[str, str, str]:
    """Names of the initializers that a quantized weight becomes."""
    return f"{slot.name}.weight", f"{slot.name}.weight.scales", f"{slot.name}.weight.zeros"


def turned(slot: Slot, held: Blockwise) -> bool:
    """Whether codes, scales and zeros lie transposed, as onnxruntime multiplies a weight that it unpacks."""
    return slot.kernel is None and held.bits == 8 and not held.channels_last


def pack_weights(model: ir.Model, table: SlotTable, ways: Mapping[str, Way], weights: Mapping[str, Blockwise]) -> None:
    """Rewrite the layers whose weights are quantized; changed in place.

    Raises:
        ExportError: a weight is used by something other than its layer.
    """
    graph, constant = model.graph, Constants(model.graph)
    model.opset_imports["com.microsoft"] = 1
    for slot in table:
        if slot.name not in weights:
            continue
        weight = graph.initializers.pop(f"{slot.name}.weight")
        users = list(weight.uses())
        if len(users) != 1 or users[0].node.op_type not in ("MatMul", "Conv") or users[0].idx != 1:
            raise ExportError(f"the weight of slot {slot.name} is used by something other than its layer")
        _rewrite(graph, users[0].node, slot, ways[slot.name], weights[slot.name], constant)


def _rewrite(graph: ir.Graph, node: ir.Node, slot: Slot, way: Way, held: Blockwise, constant: Constants) -> None:
    tape = Tape()
    if way.product:
        x = _patches(tape, node, slot, constant)
        result = _product(tape, graph, x, node, slot, held)
        if slot.kernel:
            result = tape.op("Transpose", [result], {"perm": [0, 3, 1, 2]})
        graph.insert_before(node, list(tape.nodes))
        result.shape, result.dtype, name = node.outputs[0].shape, ir.DataType.FLOAT, node.outputs[0].name
        ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        result.name = name
    else:
        node.replace_input_with(1, _unpacked(tape, graph, node, slot, held, constant))
        graph.insert_before(node, list(tape.nodes))
    for index, made in enumerate(tape.nodes):
        for value in made.outputs:
            value.name = value.name or f"{slot.name}.packed.{index}"


def _unpacked(tape: Tape, graph: ir.Graph, node: ir.Node, slot: Slot, held: Blockwise, constant: Constants) -> ir.Value:
    """The weight in float32. The scales' shape is made to depend on x: onnxruntime would otherwise unpack all layers
    before it runs the first, and the optimizers of other programs would do so once and for all. (A 0 in a shape keeps
    the axis; with a -1 beside it, onnxruntime cannot put a -1 in its place.)"""
    op, x, flat = tape.op, node.inputs[0], turned(slot, held)
    parts = [held.codes, held.scales, held.zeros]
    if flat:
        parts = [np.ascontiguousarray(part.T) for part in parts]
    else:
        parts = [part.reshape(len(part), -1, held.scales.shape[1]) for part in parts]
    codes, scales, zeros = _initializers(graph, slot, parts)
    none = op("Mul", [op("Shape", [x], {"start": 0, "end": 1}), constant(0)])
    now = op("Reshape", [scales, op("Concat", [none, constant(*parts[1].shape[1:-1], -1)], {"axis": 0})])
    block = slot.patch // held.scales.shape[1]
    made = op("DequantizeLinear", [codes, now, zeros], {"axis": 0 if flat else 1, "block_size": block})
    return made if flat else op("Reshape", [made, constant(*slot.weight_shape)])


def _patches(tape: Tape, node: ir.Node, slot: Slot, constant: Constants) -> ir.Value:
    """x of a Linear as it is; that of a Conv as [rows, height, width, kh * kw * in], at the positions of the output."""
    op, x = tape.op, node.inputs[0]
    assert x is not None
    if slot.kernel is None:
        return x
    pads, strides = (_ints(node, name, given) for name, given in (("pads", [0] * 4), ("strides", [1, 1])))
    if _ints(node, "dilations", [1, 1]) != [1, 1] or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise ExportError(f"the Conv of slot {slot.name} has dilations, or pads that are not numbers")
    x = op("Transpose", [x], {"perm": [0, 2, 3, 1]})
    if any(pads):
        x = op("Pad", [x, constant(0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0)])
    height, width = slot.kernel
    parts = [
        op(
            "Slice",
            [
                x,
                constant(row, column),
                constant(row - height + 1 or END, column - width + 1 or END),
                constant(1, 2),
                constant(*strides),
            ],
        )
        for row in range(height)
        for column in range(width)
    ]
    return parts[0] if len(parts) == 1 else op("Concat", parts, {"axis": 3})


def _product(tape: Tape, graph: ir.Graph, x: ir.Value, node: ir.Node, slot: Slot, held: Blockwise) -> ir.Value:
    out, blocks = held.scales.shape
    block = slot.patch // blocks
    inputs = _initializers(graph, slot, (held.codes.reshape(out, blocks, -1), held.scales, held.zeros))
    bias = [None, node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] is not None else []
    attributes = {"K": slot.patch, "N": out, "bits": held.bits, "block_size": block, "accuracy_level": FLOAT32}
    return tape.op("MatMulNBits", [x, *inputs, *bias], attributes, domain="com.microsoft")


def _initializers(graph: ir.Graph, slot: Slot, parts: Sequence[Array]) -> list[ir.Value]:
    """Codes, scales and zeros."""
    made = []
    for name, array in zip(leaves(slot), parts, strict=True):
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.initializers.add(value)
        made.append(value)
    return made


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default
