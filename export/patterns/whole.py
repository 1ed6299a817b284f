"""Layers that take the whole contract, gains and biases too; the formula is in `lora_edge.reference`."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site
from lora_edge.export.patterns.updates import along_activations, into_weight, of_maps, product


def linear_activation(site: Site) -> ir.Value:
    """Gains act on the activations."""
    op, inputs = site.tape.op, site.inputs
    base = op("MatMul", [op("Mul", [site.layer.x, inputs["gain_in"]]), site.layer.transposed()])
    base = op("Mul", [base, inputs["gain_out"]])
    return op("Add", [base, op("Add", [along_activations(site), _biases(site)])])


def linear_weight(site: Site) -> ir.Value:
    """Gains and the update act on the weight: cheaper for layers that see many rows."""
    op, inputs = site.tape.op, site.inputs
    gain_in = op("Unsqueeze", [inputs["gain_in"], site.constant(1)])
    gained = op("Mul", [op("Mul", [site.layer.transposed(), gain_in]), inputs["gain_out"]])
    return op("Add", [product(site, into_weight(site, gained)), _biases(site)])


def conv_activation(site: Site) -> ir.Value:
    """The bias is added with the update: a Conv whose bias is an input loses onnxruntime's blocked layout."""
    op, inputs, layer, constant = site.tape.op, site.inputs, site.layer, site.constant
    gain_in, gain_out = (op("Unsqueeze", [inputs[leaf], constant(1, 2)]) for leaf in ("gain_in", "gain_out"))
    base = op("Conv", [op("Mul", [layer.x, gain_in]), layer.weight], dict(layer.last.attributes))
    base = op("Mul", [base, gain_out])
    update = op("Add", [of_maps(site), op("Unsqueeze", [_biases(site), constant(1)])])
    flat = op("Add", [op("Reshape", [base, constant(0, 0, -1)]), update])
    return op("Reshape", [flat, op("Shape", [base])])


def _biases(site: Site) -> ir.Value:
    own, given = site.layer.bias, site.inputs["bias"]
    return given if own is None else site.tape.op("Add", [own, given])
