"""Layers that take lanes alone (`down` and `up`): y = x @ W + ((x @ down) * scale) @ up + bias."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site
from lora_edge.export.patterns.plain import plain
from lora_edge.export.patterns.updates import along_activations, into_weight, of_maps, onto_maps, product


def linear_activation(site: Site) -> ir.Value:
    """The update is computed beside the layer; without lanes, adding it is adding the bias."""
    op, layer = site.tape.op, site.layer
    update = along_activations(site)
    if layer.bias is not None:
        update = op("Add", [update, layer.bias])
    return op("Add", [op("MatMul", [layer.x, layer.transposed()]), update])


def linear_weight(site: Site) -> ir.Value:
    """The update goes into the weight: cheaper for layers that see many rows."""
    return product(site, into_weight(site, site.matrix()), site.layer.bias)


def conv_activation(site: Site) -> ir.Value:
    """The layer's Conv keeps its constant weight and bias, and with them onnxruntime's blocked layout."""
    return onto_maps(site, plain(site), of_maps(site))
