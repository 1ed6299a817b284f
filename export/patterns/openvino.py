"""Layers as OpenVINO runs them fast: untouched ones cost next to nothing, and no Conv has a weight that is an input.

OpenVINO refuses a Conv whose weight has a free axis, and ranks are free. So the lanes of a Conv are products: every
position is multiplied by all kh * kw taps of `down` at once, and a Conv with a constant weight of ones puts the taps
of neighbours together, in the layer's own strides and pads. Where a slot has no lanes, what is added is one number per
channel.

Layers that no update changes are written the same way (`bare`, `pointwise_bare`), so that a graph without slots differs
from these in nothing but the slots.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from lora_edge.export.patterns.pattern import LAST, LATE, PIECES, Pattern, Site
from lora_edge.export.patterns.plain import plain
from lora_edge.export.patterns.updates import EMPTY, along_activations, biases, gained_maps, product
from lora_edge.slots import Placement


def bare(site: Site) -> ir.Value:
    """y = x @ W + bias."""
    return _in_pieces(site, lambda weight, bias, up: _base(site, weight, bias))


def linear(site: Site) -> ir.Value:
    """y = x @ W + bias + update; the scales are in `down` before anything varies."""
    op, layer, inputs = site.tape.op, site.layer, site.inputs
    base = _base(site, site.matrix(), layer.bias)
    if not layer.has_positions:
        return op("Add", [base, along_activations(site)])
    made = op("MatMul", [layer.x, op("Mul", [inputs["down"], site.lanes.scale_rows])])
    made = op("MatMul", [op("Reshape", [made, site.lanes.rows], EMPTY), inputs["up"]])
    return op("Add", [base, made])


def linear_weight(site: Site) -> ir.Value:
    """y = x @ (W + update) + bias.

    The changed weight is held as [rows or 1, out, in] and turned in the product: so OpenVINO multiplies by an input as
    fast as by a constant, and the other way round in up to twice the time.
    """
    op, inputs, lanes = site.tape.op, site.inputs, site.lanes

    def make(weight: ir.Value, bias: ir.Value | None, up: ir.Value | None) -> ir.Value:
        down = op("Reshape", [op("Mul", [inputs["down"], lanes.scale_rows]), lanes.weights], EMPTY)
        factors = op("Transpose", [up or inputs["up"]], {"perm": [1, 0]}), op("Transpose", [down], {"perm": [0, 2, 1]})
        held = op("Add", [op("Transpose", [weight], {"perm": [1, 0]}), op("MatMul", factors)])
        made = op("Transpose", [held], {"perm": [0, 2, 1]})
        site.tape.nodes[-1].meta[LATE] = True
        return product(site, made, bias)

    return _in_pieces(site, make)


def _base(site: Site, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    made = site.tape.op("MatMul", [site.layer.x, weight])
    return made if bias is None else site.tape.op("Add", [made, bias])


def _in_pieces(site: Site, make: Callable[[ir.Value, ir.Value | None, ir.Value | None], ir.Value]) -> ir.Value:
    """A result that would be cut in pieces is made in pieces, of those of weight, bias and `up`: it would be cut in
    every step, and constants are cut when the graph is opened. What is done with a piece alone, OpenVINO does while it
    makes it.
    """
    weight, layer, up, pieces = site.matrix(), site.layer, site.inputs.get("up"), site.layer.pieces
    if pieces == 1:
        return make(weight, layer.bias, up)
    others = [[None] * pieces if part is None else _cut(site, part, pieces) for part in (layer.bias, up)]
    made = [make(*parts) for parts in zip(_cut(site, weight, pieces), *others, strict=True)]
    whole = site.tape.op("Concat", made, {"axis": -1})
    site.tape.nodes[-1].meta[PIECES] = True
    return whole


def _cut(site: Site, value: ir.Value, pieces: int) -> list[ir.Value]:
    return list(site.tape.op_multi_out("Split", [value], {"axis": -1, "num_outputs": pieces}, num_outputs=pieces))


def _channels_last(linear: Mapping[Placement, Pattern], conv: Pattern) -> Pattern:
    """The pattern of a 1x1 Conv: where its maps are laid out anew beside it, channels last, it is a Linear of every
    position, which saves laying them out as convolutions want it; any other is a Conv.
    """

    def pointwise(site: Site) -> ir.Value:
        op, constant, layer = site.tape.op, site.constant, site.layer
        beside = (layer.x.producer(), *layer.result.consumers())
        if not any(node is not None and node.op_type == "Transpose" for node in beside):
            return conv(site)
        last = op("Transpose", [layer.x], {"perm": [0, 2, 3, 1]})
        x = op("Reshape", [last, constant(0, -1, layer.slot.in_features)])
        x.shape, x.dtype = ir.Shape([None, None, layer.slot.in_features]), layer.x.dtype
        made = linear[layer.slot.placement](replace(site, layer=replace(layer, x=x)))
        size = [op("Shape", [last], {"start": 0, "end": 3}), constant(layer.slot.out_features)]
        made = op("Reshape", [made, op("Concat", size, {"axis": 0})])
        return op("Transpose", [made], {"perm": [0, 3, 1, 2]})

    return pointwise


def conv(site: Site) -> ir.Value:
    """y = Conv(x, W) + bias + update."""
    base = plain(site)
    made = site.tape.op("Add", [base, _of_maps(site, base)])
    site.tape.nodes[-1].meta[LAST] = True
    return made


pointwise = _channels_last({"activation": linear, "weight": linear_weight}, conv)
pointwise_bare = _channels_last({"activation": bare, "weight": bare}, plain)


def whole_conv(site: Site) -> ir.Value:
    """y = Conv(x * gain_in, W) * gain_out + update + biases."""
    op, base = site.tape.op, gained_maps(site)
    own = op("Unsqueeze", [biases(site), site.constant(1, 2)])
    return op("Add", [base, op("Add", [_of_maps(site, base), own])])


def _of_maps(site: Site, base: ir.Value) -> ir.Value:
    """up^T @ Conv(x, down * scale): as the layer's result, or, without lanes, [1, out, 1, 1]."""
    op, constant, lanes = site.tape.op, site.constant, site.lanes
    seen = site.layer.x
    if site.layer.slot.kernel == (1, 1):  # or it would be laid out anew without lanes too; larger ones copy it for that
        seen = op("Slice", [seen, constant(0), lanes.end, constant(2)])  # [rows, in, height or 0, width]
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
