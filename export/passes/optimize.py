"""Fold constants and drop what is dead or stands twice, by the passes of onnxscript and onnx_ir.

Their ready-made sequence would also merge initializers of equal values; a norm must keep parameters of its own.
"""

import onnx_ir as ir
from onnx_ir.passes import PassManager, Sequential, common
from onnxscript.optimizer import fold_constants_ir

from lora_edge.export.variants import Variant
from lora_edge.slots import SlotTable

_CLEAN = Sequential(
    PassManager([common.IdentityEliminationPass(), common.RemoveUnusedNodesPass()], steps=2, early_stop=True),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.NameFixPass(),
)


def optimize(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Optimize in place; weights and graph inputs keep their names."""
    fold_constants_ir(model, onnx_shape_inference=False)
    _CLEAN(model)
