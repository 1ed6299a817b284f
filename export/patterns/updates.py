"""What an update adds, and where: the parts that patterns are put together from."""

import onnx_ir as ir

from lora_edge.export.patterns.pattern import Site

EMPTY = {"allowzero": 1}  # a 0 in a shape means 0, not "as the input has it"


def along_activations(site: Site) -> ir.Value:
    """((x @ down) * scale) @ up: as the layer's result, or one row without lanes."""
    op, inputs, lanes = site.tape.op, site.inputs, site.lanes
    made = op("MatMul", [site.layer.x, inputs["down"]])
    if not site.layer.has_positions:  # so small that one row in place of all saves nothing
        return op("MatMul", [op("Mul", [made, lanes.scale]), inputs["up"]])
    made = op("Reshape", [op("Mul", [made, lanes.scale_rows]), lanes.rows], EMPTY)
    return op("MatMul", [made, inputs["up"]])


def into_weight(site: Site, weight: ir.Value) -> ir.Value:
    """W + (down * scale) @ up: [rows or 1, in, out].

    One weight where there are no lanes, however many rows of scales other slots have, and one row is added to it: of
    several products that have nothing to sum, onnxruntime writes but the first.
    """
    op, inputs = site.tape.op, site.inputs
    down = op("Reshape", [op("Mul", [inputs["down"], site.lanes.scale_rows]), site.lanes.weights], EMPTY)
    return op("Add", [weight, op("MatMul", [down, inputs["up"]])])


def product(site: Site, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """x @ weight + bias, the weight being [rows or 1, in, out or a piece of it].

    Where one weight serves all rows, it is one product, not one for each row: a weight that changes is laid out anew in
    every product. The bias stands right behind it, where OpenVINO adds it in the same pass.
    """
    op, slot, constant = site.tape.op, site.layer.slot, site.constant
    taken = op("Concat", [site.lanes.sets, constant(-1, slot.in_features)], {"axis": 0})
    given = op("Concat", [site.lanes.batch, constant(-1, 0)], {"axis": 0})  # a 0 keeps what the weight gives
    made = op("MatMul", [op("Reshape", [site.layer.x, taken]), weight])
    return op("Reshape", [made if bias is None else op("Add", [made, bias]), given])


def of_maps(site: Site) -> ir.Value:
    """(up * scale)^T @ Conv(x, down): [rows, out, positions], or [1, 1, 1] without lanes.

    The second Conv of a LoCon is 1x1, so it is a product; onnxruntime does not write the output of a Conv that has no
    input channels, nor any but the first of several products that have nothing to sum.
    """
    op, inputs, lanes = site.tape.op, site.inputs, site.lanes
    up = op("Mul", [op("Transpose", [inputs["up"]], {"perm": [1, 0]}), lanes.scale_rows])
    up = op("Reshape", [up, lanes.weights], EMPTY)
    return op("MatMul", [up, op("Reshape", [_lanes_of_maps(site), lanes.maps], EMPTY)])


def _lanes_of_maps(site: Site) -> ir.Value:
    """Conv(x, down): [rows, r, height, width].

    Where every position has a result of its own, it is the same as a transposed Conv with its taps in reverse, which
    onnxruntime computes as one product of all taps with the maps as they lie; a Conv whose weight is no constant has
    the neighbours of every position written out first, for a few lanes.
    """
    op, slot, constant = site.tape.op, site.layer.slot, site.constant
    attributes = dict(site.layer.last.attributes)
    kh, kw = slot.kernel or (1, 1)
    if kh * kw == 1 or {*attributes["strides"].as_ints(), *attributes["dilations"].as_ints()} != {1}:
        down = op("Transpose", [site.inputs["down"]], {"perm": [1, 0]})
        down = op("Reshape", [down, constant(0, slot.in_features, kh, kw)])  # a 0 keeps the rank, also rank 0
        return op("Conv", [site.layer.x, down], attributes)
    taps = op("Reshape", [site.inputs["down"], constant(slot.in_features, kh * kw, -1)])
    taps = op("Gather", [taps, constant(*reversed(range(kh * kw)))], {"axis": 1})
    taps = op("Transpose", [taps], {"perm": [0, 2, 1]})
    pads = [kernel - 1 - pad for kernel, pad in zip((kh, kw) * 2, attributes["pads"].as_ints(), strict=True)]
    taps = op("Reshape", [taps, constant(0, 0, kh, kw)])
    return op("ConvTranspose", [site.layer.x, taps], attributes | {"pads": ir.AttrInt64s("pads", pads)})


def onto_maps(site: Site, base: ir.Value, update: ir.Value) -> ir.Value:
    """base [rows, out, height, width] + update [rows, out, positions], or [1, out, 1]."""
    op = site.tape.op
    flat = op("Add", [op("Reshape", [base, site.constant(0, 0, -1)]), update])
    return op("Reshape", [flat, op("Shape", [base])])


def biases(site: Site) -> ir.Value:
    """The layer's own bias, if it has one, and that of adapters: [out]."""
    own, given = site.layer.bias, site.inputs["bias"]
    return given if own is None else site.tape.op("Add", [own, given])


def gained_maps(site: Site) -> ir.Value:
    """Conv(x * gain_in, W) * gain_out, without bias."""
    op, layer = site.tape.op, site.layer
    gain_in, gain_out = (op("Unsqueeze", [site.inputs[leaf], site.constant(1, 2)]) for leaf in ("gain_in", "gain_out"))
    base = op("Conv", [op("Mul", [layer.x, gain_in]), layer.weight], dict(layer.last.attributes))
    return op("Mul", [base, gain_out])
