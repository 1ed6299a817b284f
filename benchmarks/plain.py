"""The graphs without LoRA inputs, over the bundle's own weights: the limit.

The exporter's trace, passes and patterns, with nothing left out but the slots; one for each library, as in bundles.
"""

import os
import sys
from pathlib import Path

import onnx_ir as ir

from lora_edge.export.build import settings_of
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.passes import PASSES
from lora_edge.export.passes.add_defaults import add_defaults
from lora_edge.export.passes.insert_tokens import insert_tokens
from lora_edge.export.slotted import slot_table
from lora_edge.export.trace import capture, trace
from lora_edge.export.variants import WITHOUT

TRANSFORMS = [transform for transform in PASSES if transform not in (insert_tokens, add_defaults)]  # make no inputs


def write_plain(model: Path, component: str, bundle: Path, folder: Path) -> None:
    """Export one component of a diffusers folder without slots.

    Args:
        model: the folder.
        component: such as `unet`.
        bundle: of the same model; its file of weights is linked, not copied.
        folder: where the ONNX files are written, one of its own.
    """
    part = next(part for part in Checkpoint.open(model).parts if part.recipe.component == component)
    module = part.load()
    config = settings_of(module)
    size = 2 ** len(config.get("block_out_channels", ()))
    table = slot_table(part.recipe, module, config, part.recipe.example(config, 1, size))
    graph = trace(part.recipe, module, capture(part.recipe, module, part.recipe.example(config, 2, size)))
    folder.mkdir(parents=True, exist_ok=True)
    for variant in WITHOUT:
        made = graph.clone()
        for transform in TRANSFORMS:
            transform(made, table, variant)
        _share(made, bundle / component / "model.onnx", folder)
        partial = folder / f"{variant.file}.partial"
        ir.save(made, partial)
        partial.rename(folder / variant.file)


def _share(graph: ir.Model, bundled: Path, folder: Path) -> None:
    """Refer to the bundle's weights in place of the graph's own, which have the same names."""
    for value in ir.load(bundled).graph.initializers.values():
        own, tensor = graph.graph.initializers.get(value.name), value.const_value
        if own is not None and own.const_value is not None and isinstance(tensor, ir.ExternalTensor):
            assert tensor.shape == own.const_value.shape, value.name
            own.const_value = tensor
    weights = bundled.with_name(bundled.name + ".data")
    linked = folder / weights.name
    linked.unlink(missing_ok=True)
    os.link(weights.resolve(), linked)


if __name__ == "__main__":
    write_plain(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
