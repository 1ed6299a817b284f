"""Rewrites of the finished graph: onnxruntime computes the same before and after, in fewer passes."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from lora_edge.arrays import Array
from lora_edge.export.passes.add_updates_last import add_updates_last
from lora_edge.export.passes.join_cuts import join_cuts
from lora_edge.export.patterns.pattern import LAST, PIECES
from lora_edge.export.variants import VARIANTS
from lora_edge.slots import SlotTable

TABLE = SlotTable("unet", ())


def model(body: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> g {body}')


def run(made: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((port.name for port in session.get_outputs()), session.run(None, feeds), strict=True))


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def mark(made: ir.Model, op: str, key: str) -> None:
    for node in made.graph:
        if node.op_type == op and (node.name or "").startswith("marked"):
            node.meta[key] = True


@pytest.mark.parametrize("width", [1, 5])
def test_updates_come_after_what_else_is_added(width: int) -> None:
    """Two convolutions with updates, summed, and what went round them: the sums of layers stand next to each other."""
    made = model(
        f"""(float[1, 2, 3, 5] x, float[1, 2, 1, {width}] u, float[1, 2, 1, {width}] v) => (float[1, 2, 3, 5] z) {{
            a = Relu(x)
            [marked_1] b = Add(a, u)
            c = Neg(x)
            [marked_2] d = Add(c, v)
            e = Add(b, d)
            z = Add(x, e)
        }}"""
    )
    feeds = {"x": normal(1, 2, 3, 5), "u": normal(1, 2, 1, width), "v": normal(1, 2, 1, width)}
    before = run(made, feeds)
    mark(made, "Add", LAST)
    add_updates_last(made, TABLE, VARIANTS[0])
    np.testing.assert_allclose(run(made, feeds)["z"], before["z"], rtol=1e-6, atol=1e-6)
    [first] = [node for node in made.graph if {"Relu", "Neg"} == {_maker(value) for value in node.inputs}]
    assert first.op_type == "Add" and Counter(node.op_type for node in made.graph)["Add"] == 4


def test_an_update_stays_where_others_read_the_layer() -> None:
    made = model(
        """(float[2, 3] x, float[2, 3] u) => (float[2, 3] z, float[2, 3] y) {
            a = Relu(x)
            [marked_1] b = Add(a, u)
            z = Add(x, b)
            y = Neg(b)
        }"""
    )
    mark(made, "Add", LAST)
    before = ir.to_proto(made).SerializeToString()
    add_updates_last(made, TABLE, VARIANTS[0])
    assert ir.to_proto(made).SerializeToString() == before


def test_pieces_go_to_who_would_cut_them() -> None:
    made = model(
        """(float[2, 3] x, float[2, 3] y) => (float[2, 3] z) {
            [marked] whole = Concat <axis: int = -1> (x, y)
            a, b = Split <axis: int = -1, num_outputs: int = 2> (whole)
            c = Relu(b)
            z = Mul(a, c)
        }"""
    )
    feeds = {"x": normal(2, 3), "y": normal(3, 2).reshape(2, 3)}
    before = run(made, feeds)
    mark(made, "Concat", PIECES)
    join_cuts(made, TABLE, VARIANTS[0])
    np.testing.assert_array_equal(run(made, feeds)["z"], before["z"])
    assert [node.op_type for node in made.graph] == ["Relu", "Mul"]


def _maker(value: ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""
