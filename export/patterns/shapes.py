"""Shapes that depend on ranks: computed once for all slots, then cut into one small array for each."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.export.constants import Constants


def flat_maps(graph: ir.Graph, constant: Constants, ranks: ir.Value, count: int) -> Sequence[ir.Value]:
    """To reshape lanes [rows, r, height, width] into [rows, r, height * width], or, where there are none, [1, 0, 1].

    The product with an empty array of one row and one position is [1, out, 1] zeros, and broadcasts: what an untouched
    Conv adds is made in no time.

    Args:
        graph: its first input has the rows of the batch.
        ranks: `lora.ranks`.
        count: of slots.

    Returns:
        [3] int64 for each slot.
    """
    tape = Tape()
    rows = tape.op("Shape", [graph.inputs[0]], {"start": 0, "end": 1})
    each = tape.op("Unsqueeze", [ranks, constant(1)])  # [slots, 1]
    held = tape.op("Greater", [each, constant(0)])
    columns = [tape.op("Where", [held, rows, constant(1)]), each, tape.op("Where", [held, constant(-1), constant(1)])]
    line = tape.op("Reshape", [tape.op("Concat", columns, {"axis": 1}), constant(-1)])
    cut = ir.node("Split", [line], attributes={"axis": 0, "num_outputs": count}, num_outputs=count)
    graph.insert_before(graph[0], [*tape.nodes, cut])
    return cut.outputs
