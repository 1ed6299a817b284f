"""Forget how the graph was made: traces carry paths and stack frames of the exporting machine."""

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from lora_edge.export.variants import Variant
from lora_edge.slots import ABI_VERSION, SlotTable


def strip_metadata(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Drop all metadata and documentation; leave the producer and the ABI version."""
    ClearMetadataAndDocStringPass()(model)
    model.graph.name = table.component
    model.producer_name, model.producer_version = "lora-edge", None
    model.metadata_props["lora_edge.abi"] = str(ABI_VERSION)
