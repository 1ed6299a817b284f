"""Weights in 8 and 4 bits against onnxruntime's own quantizer and torch's layers."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.tape import Tape
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from lora_edge import errors
from lora_edge.arrays import Array, FloatArray
from lora_edge.blockwise import packed, unpacked
from lora_edge.export.passes.pack_weights import pack_weights
from lora_edge.export.passes.store_halves import store_halves
from lora_edge.export.quantize import CHOICES, Way, block_of, quantized
from lora_edge.export.smaller import Smaller, psnr
from lora_edge.slots import Slot, SlotTable

UNPACKED, PRODUCT, PRODUCT_8 = Way(8, False), Way(4, True), Way(8, True)
Attributes: TypeAlias = Mapping[str, Sequence[int]]
LINEAR = Slot("a", 64, 48)
CONV, WIDE = Slot("a", 32, 48, (3, 3)), Slot("a", 32, 48, (1, 1))


def normal(*shape: int) -> FloatArray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def run(model: ir.Model, x: Array) -> Array:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


def layer(slot: Slot, weight: FloatArray, bias: FloatArray, attributes: Attributes) -> ir.Model:
    """A graph of one layer."""
    tape = Tape()
    axes: list[int | str] = ["n", slot.in_features, "height", "width"] if slot.kernel else ["n", "at", slot.in_features]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(axes))
    held = weight if slot.kernel else np.ascontiguousarray(weight.T)
    values = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        for name, array in ((f"{slot.name}.weight", held), (f"{slot.name}.bias", bias))
    ]
    if slot.kernel:
        made = tape.op("Conv", [x, *values], attributes)
    else:
        made = tape.op("Add", [tape.op("MatMul", [x, values[0]]), values[1]])
    made.name, made.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [made], nodes=tape.nodes, initializers=values, opset_imports={"": 23}, name="one")
    for index, node in enumerate(graph):
        for value in node.outputs:
            value.name = value.name or f"v{index}"
    return ir.Model(graph, ir_version=10)


def by_torch(
    slot: Slot, x: FloatArray, weight: FloatArray, bias: FloatArray, attributes: dict[str, list[int]]
) -> Array:
    given = [torch.from_numpy(array) for array in (x, weight, bias)]
    if not slot.kernel:
        return torch.nn.functional.linear(*given).numpy()
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    given[0] = torch.nn.functional.pad(given[0], (left, right, top, bottom))
    return torch.nn.functional.conv2d(*given, stride=attributes.get("strides", [1, 1])).numpy()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_codes_are_unpacked_as_they_were_packed(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, (5, count), dtype=np.uint8)
    assert np.array_equal(unpacked(packed(codes, bits), bits, count), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_as_near_as_those_of_onnxruntimes_quantizer(bits: int) -> None:
    weight = normal(48, 128)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=bits)
    codes, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight.T))
    ours = quantized(weight, Way(bits, True), 32)
    assert ours.codes.nbytes == codes.nbytes and ours.scales.size == scales.size and ours.zeros.nbytes == zeros.nbytes
    np.testing.assert_allclose(np.abs(ours.scales).ravel(), np.abs(scales).ravel(), rtol=1e-5)
    theirs = (unpacked(codes.reshape(48, -1), bits, 128).reshape(48, 4, 32).astype(np.float32)
              - unpacked(zeros.reshape(48, -1), bits, 4)[..., None]) * scales.reshape(48, 4, 1)  # fmt: skip
    error, other = (float(np.mean((made.reshape(48, 128) - weight) ** 2)) for made in (ours.dequantized(), theirs))
    assert error <= 1.02 * other


def test_blocks_of_zeros_and_of_one_sign_keep_their_zeros() -> None:
    weight = np.concatenate([np.zeros((4, 32)), np.abs(normal(4, 32))], 1).astype(np.float32)
    weight[:, 40] = 0
    made = quantized(weight, PRODUCT, 32).dequantized()
    assert not made[:, :32].any() and not made[:, 40].any()
    assert np.abs(made - weight).max() <= weight.max() / 15


SHAPES: Mapping[str, tuple[Slot, Attributes]] = {
    "Linear": (LINEAR, {}),
    "1x1": (WIDE, {"strides": [1, 1]}),
    "3x3": (CONV, {"pads": [1, 1, 1, 1]}),
    "3x3 to half the size": (CONV, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "3x3, padded on two sides": (CONV, {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
}


@pytest.mark.parametrize("way", [UNPACKED, PRODUCT, PRODUCT_8], ids=["unpacked", "4 bits", "8 bits"])
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_compute_as_torch_with_the_weights_that_codes_stand_for(shape: str, way: Way) -> None:
    slot, attributes = SHAPES[shape]
    weight, bias = normal(*slot.weight_shape), normal(slot.out_features)
    held = quantized(weight, way, block_of(slot))
    model = layer(slot, weight, bias, attributes)
    pack_weights(model, SlotTable("unet", (slot,)), {"a": way}, {"a": held})
    x = normal(2, slot.in_features, 9, 7) if slot.kernel else normal(2, 5, slot.in_features)
    expected = by_torch(slot, x, held.dequantized(), bias, attributes)
    got = run(model, x)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()
    assert all(value.const_value is None or value.const_value.nbytes < weight.nbytes / 2
               for value in model.graph.initializers.values())  # fmt: skip


def test_large_maps_and_small_layers_are_treated_apart() -> None:
    assert CHOICES["int4"](CONV, 64) == UNPACKED and CHOICES["int4"](CONV, 4) == PRODUCT
    assert CHOICES["int4"](LINEAR, 4096) == PRODUCT and CHOICES["int8"](LINEAR, 1) == UNPACKED
    assert [block_of(Slot(name, size, 8)) for name, size in (("a", 64), ("a", 48), ("a", 20), ("conv_in", 64))] == [
        32,
        16,
        0,
        0,
    ]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_weights_in_half_precision_compute_as_torchs_rounded_ones(dtype: ir.DataType) -> None:
    weight, bias = normal(*CONV.weight_shape), normal(CONV.out_features)
    model = layer(CONV, weight, bias, {})
    store_halves(model, {"a.weight", "another.weight"}, dtype)
    half = torch.float16 if dtype == ir.DataType.FLOAT16 else torch.bfloat16
    x = normal(1, 32, 5, 5)
    expected = by_torch(CONV, x, torch.from_numpy(weight).to(half).float().numpy(), bias, {})
    assert np.abs(run(model, x) - expected).max() <= 2e-6 * np.abs(expected).max()
    held = model.graph.initializers["a.weight"].const_value
    assert held is not None and held.nbytes == weight.nbytes // 2


def test_psnr_is_what_it_is_for_a_known_error() -> None:
    then = np.linspace(0, 1, 1001, dtype=np.float32)
    assert psnr(then + np.float32(0.01), then) == pytest.approx(40, abs=1e-3)
    assert psnr(then, then) == float("inf")


@pytest.mark.parametrize("asked", [{"quantize": "int2"}, {"store": "fp8"}])
def test_what_there_is_not_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(errors.ExportError, match=f"cannot be made '{next(iter(asked.values()))}'; there are"):
        Smaller(**asked)
