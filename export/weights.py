"""Writing a graph with its weights beside it, and telling where each slot's own lie.

Kinds such as DoRA look at the weight that they change; the manifest says where to find it, so that no reader of
adapters has to read ONNX.
"""

from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from lora_edge.errors import ExportError
from lora_edge.slots import Slot, SlotTable

EXTERNAL_FROM = 1024  # bytes from which a tensor goes into model.onnx.data; those of slots go there whatever their size
DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16"}  # spelled as safetensors does


def write_graph(model: ir.Model, table: SlotTable, graph: Path) -> dict[str, Any]:
    """Save a graph and its weights.

    Args:
        model: after all passes; its tensors are replaced by references to the file.
        table: its slots.
        graph: the ONNX file to write; the weights go to the same name with `.data` behind it.

    Returns:
        What the manifest says of the slots' tensors, see `lora_edge.graphweights`.

    Raises:
        ExportError: the graph no longer holds a slot's weight under its own name.
    """
    data = graph.name + ".data"
    owned = {f"{slot.name}.{leaf}" for slot in table for leaf in ("weight", "bias")}
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and (value.name in owned or value.const_value.nbytes > EXTERNAL_FROM)
    ]
    held = [value.const_value for value in values if value.const_value is not None]
    written = convert_tensors_to_external(held, graph.parent, data)
    for value, tensor in zip(values, written, strict=True):
        value.const_value = tensor
    ir.save(model, graph)
    return {
        "file": f"{graph.parent.name}/{data}",
        "tensors": {slot.name: _weight(model, slot) for slot in table},
        "biases": {slot.name: _place(model, f"{slot.name}.bias") for slot in table if slot.has_bias},
    }


def _weight(model: ir.Model, slot: Slot) -> dict[str, Any]:
    return {**_place(model, f"{slot.name}.weight"), "transposed": slot.kernel is None}  # insert_slots turned a Linear's


def _place(model: ir.Model, name: str) -> dict[str, Any]:
    value = model.graph.initializers.get(name)
    tensor = value.const_value if value is not None else None
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in DTYPES:
        raise ExportError(f"the finished graph has no tensor {name}; a pass renamed, folded or recoded it")
    return {"offset": tensor.offset or 0, "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape.numpy())}
