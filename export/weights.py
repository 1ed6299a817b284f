"""Writing the graphs of a component over one file of weights, and telling where each slot's own lie.

Kinds such as DoRA look at the weight that they change; the manifest says where to find it, so that no reader of
adapters has to read ONNX.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from lora_edge.blockwise import Blockwise
from lora_edge.errors import ExportError
from lora_edge.export.passes.pack_weights import leaves, turned
from lora_edge.slots import Slot, SlotTable

EXTERNAL_FROM = 1024  # bytes from which a tensor goes into model.onnx.data; those of slots go there whatever their size
DTYPES = {  # spelled as safetensors does
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.UINT8: "U8",
}


def write_graphs(
    models: Mapping[str, ir.Model],
    table: SlotTable,
    folder: Path,
    quantized: Mapping[str, Blockwise] = MappingProxyType({}),
) -> dict[str, Any]:
    """Save every graph of a component; the weights are written once, beside the first graph, which has them all.

    Args:
        models: by file name, after all passes; their tensors are replaced by references to the file.
        table: the slots.
        folder: of the component.
        quantized: slot -> its weight, where it lies in codes.

    Returns:
        What the manifest says of the slots' tensors, see `lora_edge.graphweights`.

    Raises:
        ExportError: a graph no longer holds a slot's weight under its own name, or has weights of its own.
    """
    (main, first), *_ = models.items()
    data = f"{main}.data"
    owned = {name for slot in table for name in (*leaves(slot), f"{slot.name}.bias")}
    values = [value for value in first.graph.initializers.values() if _lies_outside(value, owned)]
    held = [value.const_value for value in values if value.const_value is not None]
    written = dict(zip((value.name for value in values), convert_tensors_to_external(held, folder, data), strict=True))
    for file, model in models.items():
        for value in model.graph.initializers.values():
            if not _lies_outside(value, owned):
                continue
            tensor = written.get(value.name)
            if tensor is None or value.const_value is None or tensor.shape != value.const_value.shape:
                raise ExportError(f"{file} has weights of its own in {value.name}; a pass renamed or recoded them")
            value.const_value = tensor
        ir.save(model, folder / file)
    return {
        "file": f"{folder.name}/{data}",
        "tensors": {
            slot.name: _packed(first, slot, quantized[slot.name]) if slot.name in quantized else _weight(first, slot)
            for slot in table
        },
        "biases": {slot.name: _place(first, f"{slot.name}.bias") for slot in table if slot.has_bias},
    }


def _lies_outside(value: ir.Value, owned: Collection[str]) -> bool:
    return value.const_value is not None and (value.name in owned or value.const_value.nbytes > EXTERNAL_FROM)


def _weight(model: ir.Model, slot: Slot) -> dict[str, Any]:
    return {**_place(model, f"{slot.name}.weight"), "transposed": slot.kernel is None}  # insert_slots turned a Linear's


def _packed(model: ir.Model, slot: Slot, held: Blockwise) -> dict[str, Any]:
    flat = turned(slot, held)
    codes, scales, zeros = (
        {**_place(model, name), "shape": list((part.T if flat else part).shape), "transposed": flat}
        for name, part in zip(leaves(slot), (held.codes, held.scales, held.zeros), strict=True)
    )
    told = {"bits": held.bits, "channels_last": held.channels_last, "strided": held.strided}
    return {**codes, **told, "scales": scales, "zeros": zeros}


def _place(model: ir.Model, name: str) -> dict[str, Any]:
    value = model.graph.initializers.get(name)
    tensor = value.const_value if value is not None else None
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in DTYPES:
        raise ExportError(f"the finished graph has no tensor {name}; a pass renamed, folded or recoded it")
    return {"offset": tensor.offset or 0, "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape.numpy())}
