"""What patterns need of `lora.scales` and `lora.ranks`: made once for all slots, then cut into one piece for each.

What an untouched slot adds should cost no pass over the activations. So its lanes, which have no elements, are reshaped
to one row in place of all; the product with `up` is then one row of zeros, which broadcasts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.export.constants import Constants

FAR = 1 << 31  # beyond any map


@dataclass(frozen=True)
class Lanes:
    """One slot's part.

    Attributes:
        scale: [rows or 1, r] float32.
        scale_rows: [rows or 1, 1, r], for activations [rows, positions, r].
        held: [1] bool, whether there are lanes.
        end: [1] int64, beyond any map, or without lanes 0.
        rows: [3] int64, the shape [rows, positions, r], or without lanes [1, 1, 0].
        maps: [3] int64, the shape [rows, r, height * width], or without lanes [1, 0, 1].
        weights: [3] int64, the shape [rows of scales, in or out, r], or without lanes [1, 1, 0].
        sets: [1] int64, how many rows of scales there are; the same for all slots.
        batch: [1] int64, rows of the batch; the same for all slots.
    """

    scale: ir.Value
    scale_rows: ir.Value
    held: ir.Value
    end: ir.Value
    rows: ir.Value
    maps: ir.Value
    weights: ir.Value
    sets: ir.Value
    batch: ir.Value


def lanes(
    graph: ir.Graph, constant: Constants, rows: ir.Value, scales: ir.Value, ranks: ir.Value, slots: int
) -> Iterator[Lanes]:
    """Those of every slot in order; what no pattern uses, the optimizer drops.

    Args:
        graph: gets the nodes.
        constant: makes its constants.
        rows: a graph input with the rows of the batch.
        scales, ranks: the graph inputs.
        slots: how many.
    """
    tape = Tape()
    nodes: list[ir.Node] = []

    def cut(values: ir.Value, axis: int, lengths: ir.Value | None = None) -> list[ir.Value]:
        given = [values] if lengths is None else [values, lengths]
        attributes = {"axis": axis} if lengths is not None else {"axis": axis, "num_outputs": slots}
        nodes.append(ir.node("Split", given, attributes=attributes, num_outputs=slots))
        return list(nodes[-1].outputs)

    def lines(*columns: ir.Value) -> list[ir.Value]:
        return cut(tape.op("Reshape", [tape.op("Concat", columns, {"axis": 1}), constant(-1)]), 0)

    batch = tape.op("Shape", [rows], {"start": 0, "end": 1})
    sets = tape.op("Shape", [scales], {"start": 0, "end": 1})
    each = tape.op("Unsqueeze", [ranks, constant(1)])  # [slots, 1]
    held = tape.op("Greater", [each, constant(0)])
    one = constant(1)
    first, others, own = (tape.op("Where", [held, some, one]) for some in (batch, constant(-1), sets))
    end = tape.op("Where", [held, constant(FAR), constant(0)])
    columns = {
        "scale": cut(scales, 1, ranks),
        "scale_rows": cut(tape.op("Unsqueeze", [scales, constant(1)]), 2, ranks),
        "held": lines(held),
        "end": lines(end),
        "rows": lines(first, others, each),
        "maps": lines(first, each, others),
        "weights": lines(own, others, each),
    }
    graph.insert_before(graph[0], [*tape.nodes, *nodes])
    for slot in range(slots):
        yield Lanes(**{name: column[slot] for name, column in columns.items()}, sets=sets, batch=batch)
