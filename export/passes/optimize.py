"""Fold constants and drop what is dead or stands twice, by the passes of onnxscript and onnx_ir.

Of equal initializers only integers become one, so that shapes that are put together alike are put together once; the
ready-made pass would merge parameters too, and a norm must keep its own.
"""

from collections.abc import Hashable

import onnx_ir as ir
from onnx_ir.passes import PassManager, Sequential, common
from onnxscript.optimizer import fold_constants_ir

from lora_edge.export.variants import Variant
from lora_edge.slots import SlotTable

_LIFT = Sequential(
    PassManager([common.IdentityEliminationPass(), common.RemoveUnusedNodesPass()], steps=2, early_stop=True),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
)
_CLEAN = Sequential(
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.NameFixPass(),
)


def optimize(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Optimize in place; weights and graph inputs keep their names."""
    own = {f"{slot.name}.{leaf}" for slot in table for leaf in ("weight", "bias")}  # every graph refers to one copy

    def folds(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in own for value in node.inputs) else None

    fold_constants_ir(model, onnx_shape_inference=False, should_fold=folds)
    _LIFT(model)
    _merge_integers(model.graph)
    _CLEAN(model)


def _merge_integers(graph: ir.Graph) -> None:
    seen: dict[Hashable, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        held = value.const_value
        if held is None or not held.dtype.is_integer():
            continue
        first = seen.setdefault((held.dtype, tuple(held.shape), held.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]
