"""Defaults: every adapter input becomes an overridable initializer, and so do the parameters of norms.

A graph input and an initializer of the same name is ONNX's optional input; with no adapter the graph then runs with
plain Stable Diffusion inputs.
"""

import numpy as np
import onnx_ir as ir

from lora_edge.arrays import Array
from lora_edge.export.variants import Variant
from lora_edge.slots import RANKS, SCALES, TOKENS, Slot, SlotTable


def add_defaults(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Give each adapter input the value that changes nothing, where the variant has optional inputs at all."""
    graph = model.graph
    if variant.scope.norms:
        graph.inputs.extend(graph.initializers[f"{norm}.{leaf}"] for norm in table.norms for leaf in ("weight", "bias"))
    if not variant.optional:
        for value in graph.inputs:
            graph.initializers.pop(value.name or "", None)
        return
    defaults = {SCALES: np.zeros((1, 0), np.float32), RANKS: np.zeros(len(table), np.int64)}
    for slot in table:
        defaults |= {slot.port(leaf): value for leaf, value in neutral(slot).items()}
    for value in graph.inputs:
        name = value.name or ""
        if name == TOKENS and value.shape is not None:
            defaults[name] = np.zeros((0, int(value.shape[1])), np.float32)
        if name in defaults:
            value.const_value = ir.tensor(defaults[name], name=name)
            graph.initializers.add(value)


def neutral(slot: Slot) -> dict[str, Array]:
    return {
        "down": np.zeros((slot.patch, 0), np.float32),
        "up": np.zeros((0, slot.out_features), np.float32),
        "gain_in": np.ones(1, np.float32),
        "gain_out": np.ones(1, np.float32),
        "bias": np.zeros(slot.out_features, np.float32),
    }
