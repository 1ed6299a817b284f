"""What a pattern made in pieces, because its user cuts it in just these, is never put together."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import PIECES
from lora_edge.export.variants import Variant
from lora_edge.slots import SlotTable


def join_cuts(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Hand the pieces of every marked Concat to the users of the Split behind it, in place."""
    for whole in [node for node in model.graph if PIECES in node.meta]:
        (split,) = whole.outputs[0].consumers()
        for cut, piece in zip(split.outputs, whole.inputs, strict=True):
            assert piece is not None
            ir.convenience.replace_all_uses_with(cut, piece)
        model.graph.remove([split, whole], safe=True)
