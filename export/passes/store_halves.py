"""Weights in half precision on the disk, and a Cast behind each: what opens the graph makes float32 of them at once."""

from collections.abc import Collection
from functools import partial

import onnx_ir as ir
from onnx_ir.tape import Tape


def store_halves(model: ir.Model, names: Collection[str], dtype: ir.DataType) -> None:
    """Recode initializers that are float32; changed in place. Others of these names stay as they are.

    Args:
        model: finished.
        names: of initializers.
        dtype: FLOAT16 or BFLOAT16.
    """
    graph = model.graph
    for name in sorted(names):
        value = graph.initializers.get(name)
        if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        held, uses = value.const_value, list(value.uses())
        value.const_value = ir.LazyTensor(partial(_recoded, held, dtype), dtype=dtype, shape=held.shape, name=name)
        value.type = ir.TensorType(dtype)
        tape = Tape()
        wide = tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
        wide.name, wide.shape, wide.dtype = f"{name}.wide", value.shape, ir.DataType.FLOAT
        graph.insert_before(graph[0], list(tape.nodes))
        for user, index in uses:
            user.replace_input_with(index, wide)


def _recoded(held: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(held.numpy().astype(dtype.numpy()))
