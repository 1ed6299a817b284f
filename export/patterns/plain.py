"""A layer that takes no update: as it was traced, but for the weight of a Linear, which lies in the file transposed."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site


def plain(site: Site) -> ir.Value:
    """y = x @ W + bias, or Conv(x, W) + bias."""
    layer = site.layer
    bias = [] if layer.bias is None else [layer.bias]
    if layer.slot.kernel is not None:
        return site.tape.op("Conv", [layer.x, layer.weight, *bias], attributes=dict(layer.last.attributes))
    product = site.tape.op("MatMul", [layer.x, layer.transposed()])
    return site.tape.op("Add", [product, *bias]) if bias else product
