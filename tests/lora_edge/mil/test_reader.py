"""What is read from a package against coremltools' own protobuf classes and its own reader of weight files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.libmilstoragepython import _BlobStorageReader
from coremltools.proto import MIL_pb2, Model_pb2

from lora_edge.errors import BundleDamaged
from lora_edge.mil import Package
from lora_edge.mil.blob import unpack
from lora_edge.mil.types import ELEMENTS
from lora_edge.mil.values import Stored
from lora_edge.mil.wire import Message, varint

KINDS = ["fp32", "fp16", "iOS18", "palettized"]


def model_of(path: Path) -> Any:
    model = Model_pb2.Model()
    model.ParseFromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    return model


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(dimension.constant.size for dimension in tensor.dimensions)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_coremltools_reads(packages: dict[str, Path], kind: str) -> None:
    program = Package.open(packages[kind]).program
    function = model_of(packages[kind]).mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    assert list(program.outputs) == list(block.outputs)
    assert [operation.kind for operation in program.operations] == [op.type for op in block.operations]
    for found, wanted in zip(program.operations, block.operations, strict=True):
        assert {name: (kind.element.name, kind.shape) for name, kind in found.outputs.items()} == {
            output.name: (ELEMENTS[output.type.tensorType.dataType].name, shape_of(output.type.tensorType))
            for output in wanted.outputs
        }
        reads = {name: [item.name for item in value.arguments] for name, value in wanted.inputs.items()}
        assert {name: list(bindings) for name, bindings in found.inputs.items()} == reads
        assert set(found.attributes) == set(wanted.attributes)


def test_element_types_have_their_names_and_numbers() -> None:
    spelled = {"fp16": "FLOAT16", "fp32": "FLOAT32"}
    for number, element in ELEMENTS.items():
        assert MIL_pb2.DataType.Value(spelled.get(element.name, element.name.upper())) == number


READ = {1: "read_fp16_data", 2: "read_float_data", 3: "read_uint8_data"}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_coremltools_reads(packages: dict[str, Path], kind: str) -> None:
    path = packages[kind] / "Data/com.apple.CoreML/weights/weight.bin"
    reader = _BlobStorageReader(str(path))
    program = Package.open(packages[kind]).program
    stored = [value for operation in program.operations for value in operation.attributes.values()
              if isinstance(value, Stored)]  # fmt: skip
    assert len(stored) > 10
    for weight in stored:
        wanted = np.asarray(getattr(reader, READ[weight.type.element.blob])(weight.offset))
        assert weight.array.tobytes() == wanted.astype(wanted.dtype).tobytes()
        assert weight.array.shape == weight.type.shape


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_below_8_bits_lie_lowest_bit_first(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, 1001)
    whole = sum(int(number) << (bits * at) for at, number in enumerate(numbers))
    packed = np.frombuffer(whole.to_bytes(-(-1001 * bits // 8), "little"), np.uint8)
    np.testing.assert_array_equal(unpack(packed, bits, 1001), numbers)


def message(*fields: bytes) -> Message:
    return Message(memoryview(b"".join(fields)), "the file")


def test_numbers_of_every_form() -> None:
    values = MIL_pb2.TensorValue(ints=MIL_pb2.TensorValue.RepeatedInts(values=[0, -1, 1 << 30, -(1 << 31)]))
    tensor = message(values.SerializeToString())
    assert tensor.message(2).integers(1) == [0, -1, 1 << 30, -(1 << 31)]
    assert message(b"\x08\x05", b"\x08\x07").integers(1) == [5, 7]
    floats = MIL_pb2.TensorValue(floats=MIL_pb2.TensorValue.RepeatedFloats(values=[1.5, -2.0])).SerializeToString()
    assert message(floats).message(1).packed(1, 4) == np.float32([1.5, -2.0]).tobytes()
    assert message(b"\x15\x00\x00\x80\x3f").packed(2, 4) == np.float32([1.0]).tobytes()


REFUSED = {
    "a group": (b"\x0b", "wire type 3"),
    "a cut length": (b"\x0a\x05ab", "a field of 5 bytes has 2 left"),
    "a length beyond memory": (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes has 0 left"),
    "a cut number": (b"\x08\x80", "ends in the middle of a number"),
    "fields without end": (b"\x08\x01" * ((1 << 18) + 1), "more than 262144 fields"),
    "a long number": (b"\x08" + b"\xff" * 10 + b"\x01", "one that is too long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_protocol_buffer_is_refused(case: str) -> None:
    data, sentence = REFUSED[case]
    with pytest.raises(BundleDamaged, match=sentence):
        message(data)


def test_a_field_that_stands_once_is_not_guessed() -> None:
    with pytest.raises(BundleDamaged, match="says field 1 2 times"):
        message(b"\x08\x05", b"\x08\x07").integer(1)
    with pytest.raises(BundleDamaged, match="in another form"):
        message(b"\x08\x05").text(1)
    with pytest.raises(BundleDamaged, match="not UTF-8"):
        message(b"\x0a\x01\xff").text(1)
    with pytest.raises(BundleDamaged, match="says 'k' twice"):
        message(b"\x0a\x03\x0a\x01k" * 2).entries(1)
    assert varint(memoryview(b"\xff" * 9 + b"\x01"), 0, "") == ((1 << 64) - 1, 10)
