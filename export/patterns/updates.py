"""What an update adds, in the operators of onnxruntime: the parts that patterns are put together from."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site

_EMPTY = {"allowzero": 1}  # a 0 in a shape means 0, not "as the input has it"


def along_activations(site: Site) -> ir.Value:
    """((x @ down) * scale) @ up: as the layer's result."""
    op, inputs = site.tape.op, site.inputs
    scale = op("Unsqueeze", [site.scale, site.constant(1)]) if site.layer.has_positions else site.scale
    lanes = op("Mul", [op("MatMul", [site.layer.x, inputs["down"]]), scale])
    return op("MatMul", [lanes, inputs["up"]])


def into_weight(site: Site, weight: ir.Value) -> ir.Value:
    """W + (down * scale) @ up: [rows or 1, in, out]."""
    op, inputs = site.tape.op, site.inputs
    lanes = op("Mul", [inputs["down"], op("Unsqueeze", [site.scale, site.constant(1)])])
    return op("Add", [weight, op("MatMul", [lanes, inputs["up"]])])


def of_maps(site: Site) -> ir.Value:
    """up^T @ (Conv(x, down) * scale): [rows, out, positions], or [1, out, 1] without lanes.

    The second Conv of a LoCon is 1x1, so it is a product; onnxruntime does not write the output of a Conv that has no
    input channels.
    """
    op, slot, constant = site.tape.op, site.layer.slot, site.constant
    kh, kw = slot.kernel or (1, 1)
    down = op("Transpose", [site.inputs["down"]], {"perm": [1, 0]})
    down = op("Reshape", [down, constant(0, slot.in_features, kh, kw)])  # a 0 keeps the rank, also rank 0
    lanes = op("Conv", [site.layer.x, down], dict(site.layer.last.attributes))
    lanes = op("Mul", [lanes, op("Unsqueeze", [site.scale, constant(2, 3)])])
    up = op("Transpose", [site.inputs["up"]], {"perm": [1, 0]})
    return op("MatMul", [up, op("Reshape", [lanes, site.flat_maps], _EMPTY)])
