"""Graph passes: one transformation a file, each `(model, table, variant) -> None`, changing the model in place.

The order is the recipe: slots go into the unoptimized graph, where each layer is still the consumer of its own weight;
defaults come after the optimizer, which would take an overridable default for a constant.
"""

from collections.abc import Callable

import onnx_ir as ir

from lora_edge.export.passes.add_defaults import add_defaults
from lora_edge.export.passes.add_updates_last import add_updates_last
from lora_edge.export.passes.insert_slots import insert_slots
from lora_edge.export.passes.insert_tokens import insert_tokens
from lora_edge.export.passes.join_cuts import join_cuts
from lora_edge.export.passes.optimize import optimize
from lora_edge.export.passes.strip_metadata import strip_metadata
from lora_edge.export.variants import Variant
from lora_edge.slots import SlotTable

Pass = Callable[[ir.Model, SlotTable, Variant], None]

PASSES: tuple[Pass, ...] = (
    insert_slots,
    insert_tokens,
    join_cuts,
    add_updates_last,
    optimize,
    add_defaults,
    strip_metadata,
)
