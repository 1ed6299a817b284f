"""Layers that take the whole contract, gains and biases too; the formula is in `lora_edge.reference`."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site
from lora_edge.export.patterns.updates import (
    along_activations,
    biases,
    gained_maps,
    into_weight,
    of_maps,
    onto_maps,
    product,
)


def linear_activation(site: Site) -> ir.Value:
    """Gains act on the activations."""
    op, inputs = site.tape.op, site.inputs
    base = op("MatMul", [op("Mul", [site.layer.x, inputs["gain_in"]]), site.layer.transposed()])
    base = op("Mul", [base, inputs["gain_out"]])
    return op("Add", [base, op("Add", [along_activations(site), biases(site)])])


def linear_weight(site: Site) -> ir.Value:
    """Gains and the update act on the weight: cheaper for layers that see many rows."""
    op, inputs = site.tape.op, site.inputs
    gain_in = op("Unsqueeze", [inputs["gain_in"], site.constant(1)])
    gained = op("Mul", [op("Mul", [site.layer.transposed(), gain_in]), inputs["gain_out"]])
    return product(site, into_weight(site, gained), biases(site))


def conv_activation(site: Site) -> ir.Value:
    """The bias is added with the update: a Conv whose bias is an input loses onnxruntime's blocked layout."""
    op = site.tape.op
    update = op("Add", [of_maps(site), op("Unsqueeze", [biases(site), site.constant(1)])])
    return onto_maps(site, gained_maps(site), update)
