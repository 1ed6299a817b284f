"""Layers as OpenVINO runs them fast: untouched ones cost next to nothing, and no Conv has a weight that is an input.

OpenVINO refuses a Conv whose weight has a free axis, and ranks are free. So the lanes of a Conv are products: every
position is multiplied by all kh * kw taps of `down` at once, and a Conv with a constant weight of ones puts the taps
of neighbours together, in the layer's own strides and pads. Where a slot has no lanes, arrays are empty before anything
is laid out anew, and what is added is one number per channel.
"""

import numpy as np
import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site
from lora_edge.export.patterns.plain import plain
from lora_edge.export.patterns.updates import EMPTY, along_activations, biases, gained_maps


def linear(site: Site) -> ir.Value:
    """y = x @ W + bias + update."""
    return site.tape.op("Add", [plain(site), along_activations(site)])


def conv(site: Site) -> ir.Value:
    """y = Conv(x, W) + bias + update."""
    base = plain(site)
    return site.tape.op("Add", [base, _of_maps(site, base)])


def whole_conv(site: Site) -> ir.Value:
    """y = Conv(x * gain_in, W) * gain_out + update + biases."""
    op, base = site.tape.op, gained_maps(site)
    own = op("Unsqueeze", [biases(site), site.constant(1, 2)])
    return op("Add", [base, op("Add", [_of_maps(site, base), own])])


def _of_maps(site: Site, base: ir.Value) -> ir.Value:
    """up^T @ Conv(x, down * scale): as the layer's result, or, without lanes, [1, out, 1, 1]."""
    op, constant, lanes = site.tape.op, site.constant, site.lanes
    seen = op("Slice", [site.layer.x, constant(0), lanes.end, constant(2)])  # [rows, in, height or 0, width]
    made = _joined(site, op("MatMul", [_taps(site), op("Reshape", [seen, constant(0, 0, -1)])]))
    up = op("Transpose", [site.inputs["up"]], {"perm": [1, 0]})
    made = op("MatMul", [up, op("Reshape", [made, lanes.maps], EMPTY)])
    one = constant(1, site.layer.slot.out_features, 1, 1)
    return op("Reshape", [made, op("Where", [lanes.held, op("Shape", [base]), one])])


def _taps(site: Site) -> ir.Value:
    """down * scale [in * kh * kw, r] as [rows or 1, r * kh * kw, in]."""
    op, constant, slot = site.tape.op, site.constant, site.layer.slot
    down = op("Transpose", [op("Mul", [site.inputs["down"], site.lanes.scale_rows])], {"perm": [0, 2, 1]})
    if slot.kernel == (1, 1):
        return down
    each = op("Reshape", [down, constant(0, 0, slot.in_features, slot.patch // slot.in_features)])
    return op("Reshape", [op("Transpose", [each], {"perm": [0, 1, 3, 2]}), constant(0, -1, slot.in_features)])


def _joined(site: Site, products: ir.Value) -> ir.Value:
    """[rows, r * kh * kw, positions]: what each position gives to every tap -> lanes [rows * r, 1, height, width]."""
    op, constant, slot = site.tape.op, site.constant, site.layer.slot
    attributes = dict(site.layer.last.attributes)
    kh, kw = slot.kernel or (1, 1)
    if (kh, kw) == (1, 1) and set(attributes["strides"].as_ints()) == {1}:
        return products
    size = op("Shape", [site.layer.x], {"start": 2, "end": 4})
    shape = op("Concat", [constant(-1, kh * kw), size], {"axis": 0})
    ones = np.eye(kh * kw, dtype=np.float32).reshape(1, kh * kw, kh, kw)
    return op("Conv", [op("Reshape", [products, shape]), constant.floats(f"taps.{kh}.{kw}", ones)], attributes)
