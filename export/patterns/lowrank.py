"""Layers that take lanes alone (`down` and `up`): y = x @ W + ((x @ down) * scale) @ up + bias."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site
from lora_edge.export.patterns.plain import plain
from lora_edge.export.patterns.updates import along_activations, into_weight, of_maps


def linear_activation(site: Site) -> ir.Value:
    """The update is computed beside the layer."""
    return site.tape.op("Add", [plain(site), along_activations(site)])


def linear_weight(site: Site) -> ir.Value:
    """The update goes into the weight: cheaper for layers that see many rows."""
    op, layer = site.tape.op, site.layer
    product = op("MatMul", [layer.x, into_weight(site, layer.transposed())])
    return product if layer.bias is None else op("Add", [product, layer.bias])


def conv_activation(site: Site) -> ir.Value:
    """The layer's Conv keeps its constant weight and bias, and with them onnxruntime's blocked layout."""
    op = site.tape.op
    base = plain(site)
    flat = op("Add", [op("Reshape", [base, site.constant(0, 0, -1)]), of_maps(site)])
    return op("Reshape", [flat, op("Shape", [base])])
