"""The graph without LoRA inputs, over the bundle's own weights: the limit.

The exporter's trace and passes, with the variant of the slots that leaves every layer as it is.
"""

import os
import sys
from pathlib import Path

import onnx_ir as ir

from lora_edge.export.build import settings_of
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.passes.insert_slots import insert_slots
from lora_edge.export.passes.optimize import optimize
from lora_edge.export.passes.strip_metadata import strip_metadata
from lora_edge.export.slotted import slot_table
from lora_edge.export.trace import capture, trace
from lora_edge.export.variants import WITHOUT


def write_plain(model: Path, component: str, bundle: Path, target: Path) -> None:
    """Export one component of a diffusers folder without slots.

    Args:
        model: the folder.
        component: such as `unet`.
        bundle: of the same model; its file of weights is linked, not copied.
        target: the ONNX file to write, in a folder of its own.
    """
    part = next(part for part in Checkpoint.open(model).parts if part.recipe.component == component)
    module = part.load()
    config = settings_of(module)
    size = 2 ** len(config.get("block_out_channels", ()))
    table = slot_table(part.recipe, module, config, part.recipe.example(config, 1, size))
    graph = trace(part.recipe, module, capture(part.recipe, module, part.recipe.example(config, 2, size)))
    for transform in (insert_slots, optimize, strip_metadata):
        transform(graph, table, WITHOUT)
    target.parent.mkdir(parents=True, exist_ok=True)
    _share(graph, bundle / component / "model.onnx", target)
    partial = target.with_suffix(".partial")
    ir.save(graph, partial)
    partial.rename(target)


def _share(graph: ir.Model, bundled: Path, target: Path) -> None:
    """Refer to the bundle's weights in place of the graph's own, which have the same names."""
    for value in ir.load(bundled).graph.initializers.values():
        own, tensor = graph.graph.initializers.get(value.name), value.const_value
        if own is not None and own.const_value is not None and isinstance(tensor, ir.ExternalTensor):
            assert tensor.shape == own.const_value.shape, value.name
            own.const_value = tensor
    weights = bundled.with_name(bundled.name + ".data")
    linked = target.with_name(weights.name)
    linked.unlink(missing_ok=True)
    os.link(weights.resolve(), linked)


if __name__ == "__main__":
    write_plain(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
