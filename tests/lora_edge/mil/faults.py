"""Deliberate faults in a saved package, each made through coremltools' own protobuf classes or by editing bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import Model_pb2

from lora_edge.mil import Package

MODEL = "Unet.mlpackage/Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
MANIFEST = "lora_edge_coreml.json"


def edit(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the protobuf of a package."""
    model = Model_pb2.Model()
    model.ParseFromString((folder / MODEL).read_bytes())
    change(model)
    (folder / MODEL).write_bytes(model.SerializeToString())


def block(model: Any) -> Any:
    return next(iter(model.mlProgram.functions["main"].block_specializations.values()))


def operation(model: Any, kind: str, reads: str = "") -> Any:
    """The first operation of a kind, which reads a value of that name."""
    found = (op for op in block(model).operations if op.type == kind)
    return next(op for op in found if reads in "".join(str(argument) for argument in op.inputs.values()))


def port(model: Any, name: str) -> Any:
    return next(feature.type for feature in model.description.input if feature.name == name)


def lose_optional(model: Any) -> None:
    port(model, "block_down").isOptional = False


def lose_all_optional(model: Any) -> None:
    for feature in model.description.input:
        feature.type.ClearField("isOptional")
        feature.type.multiArrayType.ClearField("floatDefaultValue")


def change_default(model: Any) -> None:
    port(model, "lora_scale").multiArrayType.floatDefaultValue = 0.5


def lose_default(model: Any) -> None:
    port(model, "block_up").multiArrayType.ClearField("floatDefaultValue")


def change_shape(model: Any) -> None:
    port(model, "block_up").multiArrayType.shape[0] = 8


def change_type(model: Any) -> None:
    port(model, "timestep").multiArrayType.dataType = 65552


def rename_input(model: Any) -> None:
    next(feature for feature in model.description.input if feature.name == "block_up").name = "block_upp"


def swap_wires(model: Any) -> None:
    """The adapter's product reads the attention's input where it read the adapter, and the other way round."""
    inputs = operation(model, "matmul", "block_down").inputs
    x, y = (inputs[name].arguments[0].name for name in ("x", "y"))
    inputs["x"].arguments[0].name, inputs["y"].arguments[0].name = y, x


def rewire(model: Any) -> None:
    """A sum that leaves the adapter out."""
    added = [op for op in block(model).operations if op.type == "add"]
    added[-1].inputs["y"].CopyFrom(added[-1].inputs["x"])


def change_kind(model: Any) -> None:
    operation(model, "add").type = "sub"


def change_declared(model: Any) -> None:
    operation(model, "silu").outputs[0].type.tensorType.dimensions[0].constant.size = 3


def change_constant(model: Any) -> None:
    made = next(op for op in block(model).operations if op.outputs[0].name.endswith("axes_0"))
    made.attributes["val"].immediateValue.tensor.ints.values[0] -= 1


def borrow_weight(model: Any) -> None:
    """A weight that is read where another of the same size lies."""
    same = [op for op in block(model).operations
            if op.type == "const" and op.attributes["val"].blobFileValue.offset
            and [d.constant.size for d in op.outputs[0].type.tensorType.dimensions] == [16]]  # fmt: skip
    value = same[0].attributes["val"].blobFileValue
    value.offset = same[1].attributes["val"].blobFileValue.offset


def drop_operation(model: Any) -> None:
    operations = block(model).operations
    at = next(index for index, op in enumerate(operations) if op.type == "silu")
    del operations[at]


def drop_output(model: Any) -> None:
    block(model).outputs[0] = "nothing"


def proto(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change)


def zero_weight(folder: Path) -> None:
    stored = Package.open(folder / "Unet.mlpackage").program.constants[WEIGHT]
    data = bytearray((folder / WEIGHTS).read_bytes())
    _, _, size, start, _ = np.frombuffer(data, "<u4, <u4, <u8, <u8, <u8", 1, stored.offset)[0]  # type: ignore[union-attr]
    data[start : start + size] = bytes(int(size))
    (folder / WEIGHTS).write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def break_sentinel(folder: Path) -> None:
    stored = Package.open(folder / "Unet.mlpackage").program.constants[WEIGHT]
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[stored.offset] ^= 1  # type: ignore[union-attr]
    (folder / WEIGHTS).write_bytes(data)


def pad_end(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0")


def manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        change(told)
        (folder / MANIFEST).write_text(json.dumps(told), encoding="utf-8")

    return apply


def wrong_slot(told: dict[str, Any]) -> None:
    told["components"]["unet"]["slots"]["block"]["up"] = "block_down"


WEIGHT = "p_gate_weight_to_fp16"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a lost optional flag": (proto(lose_optional), "the input block_down is no longer optional"),
    "all optional flags lost": (proto(lose_all_optional), "the input block_down is no longer optional"),
    "another default": (proto(change_default), "the input lora_scale has the default 0.5 where 1.0 was exported"),
    "a lost default": (proto(lose_default), "the input block_up has the default None where 0.0 was exported"),
    "another shape": (proto(change_shape), "the input block_up is fp16 [4, 16] in the program and fp16 [8, 16]"),
    "another type": (proto(change_type), "the input timestep is fp32 [2] in the program and fp16 [2]"),
    "another name": (proto(rename_input), "the description has the input block_upp, which the program lacks"),
    "swapped wires": (proto(swap_wires), "x block_down, y layer_norm_cast_fp16; "),
    "a wire past the adapter": (proto(rewire), "(add) reads another input than it did"),
    "another operation": (proto(change_kind), "(sub) is now sub where add was exported"),
    "another declared shape": (proto(change_declared), "(silu) makes a result of another name, type or shape"),
    "another constant": (proto(change_constant), "axes_0 (const) holds another value than it did"),
    "a borrowed weight": (proto(borrow_weight), "(const) holds another value than it did"),
    "a dropped operation": (proto(drop_operation), "which nothing before it makes"),
    "a dropped output": (proto(drop_output), "the output nothing is made by no operation"),
    "zeroed weights": (zero_weight, f"the weight {WEIGHT} was changed"),
    "truncated weights": (truncate, "weight.bin ends in the middle of the weight "),
    "a broken weight file": (break_sentinel, f"where the weight {WEIGHT} should lie"),
    "bytes after the weights": (pad_end, "bytes and should have"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"lacks {WEIGHTS}"),
    "no model": (lambda folder: (folder / MODEL).unlink(), f"lacks {MODEL}"),
    "no package": (lambda folder: shutil.rmtree(folder / "Unet.mlpackage"), "lacks Unet.mlpackage/"),
    "a file beside the packages": (lambda folder: (folder / "vocab.json").write_text("[]"), "vocab.json was changed"),
    "a slot with another input": (manifest(wrong_slot), "slot block takes its up, [4, 16], by the input block_down"),
    "a file outside": (manifest(lambda told: told["files"].update({"../x": {}})), "'../x', which lies outside"),
    "a manifest without digests": (manifest(lambda told: told.pop("digests")), "an entry: KeyError('digests')"),
}  # fmt: skip
