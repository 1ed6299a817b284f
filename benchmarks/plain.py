"""The graph without LoRA inputs, by the exporter's own trace and passes less the slots: the limit."""

import sys
from pathlib import Path

import onnx_ir as ir

from lora_edge.export.build import settings_of
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.passes.optimize import optimize
from lora_edge.export.passes.strip_metadata import strip_metadata
from lora_edge.export.slotted import slot_table
from lora_edge.export.trace import capture, trace


def write_plain(model: Path, component: str, target: Path) -> None:
    """Export one component of a diffusers folder as it is."""
    part = next(part for part in Checkpoint.open(model).parts if part.recipe.component == component)
    module = part.load()
    config = settings_of(module)
    size = 2 ** len(config.get("block_out_channels", ()))
    table = slot_table(part.recipe, module, config, part.recipe.example(config, 1, size))
    graph = trace(part.recipe, module, capture(part.recipe, module, part.recipe.example(config, 2, size)))
    optimize(graph, table)
    strip_metadata(graph, table)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    ir.save(graph, partial, external_data=target.name + ".data")
    partial.rename(target)


if __name__ == "__main__":
    write_plain(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
