"""Packages that were damaged at random or on purpose: refused with a typed error, before they take memory."""

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge.errors import BundleDamaged, BundleError, GraphFailed, LoraEdgeError, OperationUnknown
from lora_edge.mil import Package

from .build import program
from .faults import MODEL, WEIGHTS, block, edit, operation

Feeds = dict[str, np.ndarray[Any, Any]]
FILES = {"model": (MODEL, 240), "weights": (WEIGHTS, 60), "manifest": ("Unet.mlpackage/Manifest.json", 60)}


def mutated(data: bytes, noise: np.random.Generator) -> bytes:
    """A few bytes changed, a piece cut out, or a piece repeated."""
    made = bytearray(data)
    at, size = int(noise.integers(len(made))), int(noise.integers(1, 40))
    way = noise.integers(4)
    if way == 0:
        del made[at : at + size]
    elif way == 1:
        made[at:at] = made[at : at + size]
    else:
        for place in noise.integers(0, len(made), int(noise.integers(1, 4))):
            made[place] = int(noise.integers(256))
    return bytes(made)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_package_is_evaluated_or_refused(saved: Path, feeds: Feeds, name: str) -> None:
    file, times = FILES[name]
    path = saved / file
    whole = path.read_bytes()
    noise = np.random.default_rng(5)
    refused = 0
    for _ in range(times):
        path.write_bytes(mutated(whole, noise))
        try:
            package = Package.open(saved / "Unet.mlpackage")
            package.digests()
            package.run({port: array for port, array in feeds.items() if port in package.inputs})
        except LoraEdgeError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", ["model", "weights"])
def test_a_file_that_was_cut_is_refused(saved: Path, name: str) -> None:
    path = saved / FILES[name][0]
    whole = path.read_bytes()
    for size in [0, 1, 63, 64, *range(100, len(whole) - 64, len(whole) // 40)]:
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            Package.open(saved / "Unet.mlpackage")


def weights(model: Any) -> list[Any]:
    consts = [op for op in block(model).operations if op.type == "const"]
    return [op for op in consts if op.attributes["val"].WhichOneof("value") == "blobFileValue"]


def set_size(tensor: Any, *sizes: int) -> None:
    for dimension, size in zip(tensor.dimensions, sizes, strict=True):
        dimension.constant.size = size


def test_a_shape_beyond_memory_takes_none(saved: Path) -> None:
    """Declared by a weight, by an input, by an operation."""

    def huge(model: Any) -> None:
        made = weights(model)[0]
        for tensor in (made.outputs[0].type.tensorType, made.attributes["val"].type.tensorType):
            set_size(tensor, *[1 << 40] * len(tensor.dimensions))

    edit(saved, huge)
    with pytest.raises(BundleDamaged, match="which cannot be"):
        Package.open(saved / "Unet.mlpackage")


GROWING = {
    "tile": (lambda mb, x: mb.tile(x=x, reps=[2, 2]), "reps", [1 << 20, 1 << 20]),
    "fill": (lambda mb, x: mb.fill(shape=[4, 4], value=1.0), "shape", [1 << 20, 1 << 20]),
    "pad": (lambda mb, x: mb.pad(x=x, pad=[0, 2, 0, 2]), "pad", [0, 1 << 20, 0, 1 << 20]),
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_result_is_checked_before_it_is_made(tmp_path: Path, kind: str) -> None:
    """An operation that would make more than it declares."""
    build, parameter, numbers = GROWING[kind]
    path = program({"y": build}, {"x": np.ones((2, 2), np.float32)}, tmp_path / "Unet.mlpackage")

    def grow(model: Any) -> None:
        name = operation(model, kind).inputs[parameter].arguments[0].name
        made = next(op for op in block(model).operations if op.outputs[0].name == name)
        del made.attributes["val"].immediateValue.tensor.ints.values[:]
        made.attributes["val"].immediateValue.tensor.ints.values.extend(numbers)

    edit(tmp_path, grow)
    package = Package.open(path)
    tracemalloc.start()
    with pytest.raises(BundleDamaged, match=rf"\({kind}\) makes \["):
        package.run({"x": np.ones((2, 2), np.float32)} if package.inputs else {})
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_values_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value may be, all of them at a time may not; what nothing reads any more is given up."""
    monkeypatch.setattr("lora_edge.mil.evaluate.MEMORY", 5 << 12)
    x = np.ones((4, 256), np.float32)

    def chain(mb: Any, x: Any) -> Any:
        for _ in range(20):
            x = mb.exp(x=mb.sin(x=x))
        return x

    def fan(mb: Any, x: Any) -> Any:
        made = [mb.exp(x=x) for _ in range(5)]
        return mb.concat(values=made, axis=0)

    Package.open(program({"y": chain}, {"x": x}, tmp_path / "chain.mlpackage")).run({"x": x})
    with pytest.raises(GraphFailed, match="would take the memory of all values above"):
        Package.open(program({"y": fan}, {"x": x}, tmp_path / "fan.mlpackage")).run({"x": x})


def test_weights_outside_the_package_are_not_opened(saved: Path) -> None:
    shutil.copy(saved / WEIGHTS, saved.parent / "other.bin")
    for name in ("../../../../other.bin", "", "a\0b", "/etc/hosts", "x" * 5000):

        def reach(model: Any, name: str = name) -> None:
            for op in weights(model):
                op.attributes["val"].blobFileValue.fileName = f"@model_path/{name}"

        edit(saved, reach)
        with pytest.raises(BundleDamaged, match="which lies outside the package|cannot be read"):
            Package.open(saved / "Unet.mlpackage")


def test_a_model_outside_the_package_is_not_opened(saved: Path) -> None:
    path = saved / "Unet.mlpackage" / "Manifest.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    for place in ("../../secret", "com.apple.CoreML/../../../secret", "a\0b", "x" * 5000, "/etc/hosts"):
        told["itemInfoEntries"][told["rootModelIdentifier"]]["path"] = place
        path.write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(BundleDamaged, match="lies outside the package|lacks its model"):
            Package.open(saved / "Unet.mlpackage")


def test_a_link_out_of_the_package_is_not_followed(saved: Path) -> None:
    moved = saved.parent / "weight.bin"
    shutil.move(saved / WEIGHTS, moved)
    (saved / WEIGHTS).symlink_to(moved)
    with pytest.raises(BundleDamaged, match="which lies outside the package"):
        Package.open(saved / "Unet.mlpackage")


UNKNOWN = {
    "a state": lambda model: model.description.state.add(name="memory"),
    "several functions": lambda model: model.description.functions.add(name="main"),
    "a second function": lambda model: model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"]),
    "a picture": lambda model: setattr(model.description.input[0].type.imageType, "width", 8),
    "a flexible shape": lambda model: model.description.input[0].type.multiArrayType.enumeratedShapes.shapes.add(),
    "a network": lambda model: model.neuralNetwork.SetInParent(),
    "a loop": lambda model: operation(model, "silu").blocks.add(),
    "a parameter": lambda model: operation(model, "silu").inputs["extra"].CopyFrom(
        operation(model, "silu").inputs["x"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_evaluated_here_is_said(saved: Path, case: str) -> None:
    edit(saved, UNKNOWN[case])
    with pytest.raises(OperationUnknown):
        Package.open(saved / "Unet.mlpackage")


def test_nesting_without_end_is_no_recursion(saved: Path) -> None:
    """A value in a list in a list …: messages are read one level at a time, and a list is refused at the first."""
    from coremltools.proto import Model_pb2

    nested = b""
    for _ in range(2000):
        nested = b"\x1a" + _length(nested) + nested  # Value.immediateValue
        nested = b"\x1a" + _length(nested) + nested  # ImmediateValue.list
        nested = b"\x0a" + _length(nested) + nested  # ListValue.values
    entry = b"\x0a\x03bad" + b"\x12" + _length(nested) + nested
    model = Model_pb2.Model()
    model.ParseFromString((saved / MODEL).read_bytes())
    made = operation(model, "silu").SerializeToString() + b"\x2a" + _length(entry) + entry
    with pytest.raises(BundleError):
        _read_operation(made, saved)


def _length(data: bytes) -> bytes:
    size, made = len(data), b""
    while size > 0x7F:
        made, size = made + bytes([size & 0x7F | 0x80]), size >> 7
    return made + bytes([size])


def _read_operation(data: bytes, folder: Path) -> None:
    from lora_edge.mil.program import _operation
    from lora_edge.mil.values import Blobs

    _operation(memoryview(data), Blobs.beside(folder / MODEL), "the file")
