"""A Core ML package on disk, opened without trusting it, and evaluated.

X.mlpackage/
  Manifest.json                               which of the files is the model
  Data/com.apple.CoreML/model.mlmodel         a protobuf: description of inputs and outputs, program
  Data/com.apple.CoreML/weights/weight.bin    the weights, which the program names by offset
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged, BundleNotFound, GraphFailed, OperationUnknown, RequestError
from lora_edge.jsonfile import read_object
from lora_edge.mil.digest import Digests, digests
from lora_edge.mil.evaluate import PRECISIONS, Precision, check_known, evaluate
from lora_edge.mil.paths import inside
from lora_edge.mil.ports import Port, match_types, read_ports
from lora_edge.mil.program import Program, read_program
from lora_edge.mil.values import Blobs, Immediate
from lora_edge.mil.wire import Message

MANIFEST = "Manifest.json"
MAX_MODEL = 64 << 20  # bytes of a model file without its weights; one of Stable Diffusion has some 3 MB
MAX_MANIFEST = 1 << 20
ML_PROGRAM = 502  # field of Model


@dataclass(frozen=True)
class Package:
    """A package whose structure, types and places of weights have been checked.

    Attributes:
        path: the `.mlpackage`.
        inputs, outputs: by name, in the package's order.
        version: of the specification; 8 is iOS17.
        program: what it computes.
    """

    path: Path
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    version: int
    program: Program

    @classmethod
    def open(cls, path: str | Path) -> "Package":
        """Read a package; weights stay on disk, mapped.

        Raises:
            BundleNotFound: no package there.
            BundleDamaged: a file is missing, cut, contradicts itself, or lies outside the package.
            OperationUnknown: it needs what is not evaluated here.
        """
        path = Path(path)
        model = _model_file(path)
        if model.stat().st_size > MAX_MODEL:
            raise BundleDamaged(f"{model} has {model.stat().st_size} bytes, more than a model without weights can have")
        message = Message(memoryview(model.read_bytes()), str(model))
        description = message.message(2, f"{model}: the description")
        if ML_PROGRAM not in message:
            raise OperationUnknown(f"{model} is not an ML program, and only those are evaluated here")
        if any(field in description for field in (13, 20)):
            raise OperationUnknown(f"{model} has states or several functions, which are not evaluated here")
        program = read_program(message.message(ML_PROGRAM, f"{model}: the program"), Blobs.beside(model), str(model))
        check_known(program, str(model))
        file = str(model)
        inputs = match_types(read_ports(description, 1, "input", file), program.inputs, "input", file)
        outputs = match_types(read_ports(description, 10, "output", file), program.outputs, "output", file)
        return cls(path, inputs, outputs, message.integer(1), program)

    def run(self, feeds: Mapping[str, Array], precision: Precision = "f32") -> dict[str, Array]:
        """Evaluate the package once.

        Args:
            feeds: arrays of the inputs' shapes; numbers are converted to the inputs' types. Inputs that are optional
                and have a default may be left out, as in Core ML.
            precision: "f32" computes everything in float32, "f64" in float64; "f16" rounds the result of every
                operation to the type that the program declares, with sums in float32, and is an estimate of what
                Core ML gives.

        Returns:
            Every output by name: the declared type in precision "f16", else float32 or float64.

        Raises:
            GraphFailed: an input is unknown, missing, of another shape or no number, or an operation fails.
            BundleDamaged: the program contradicts what it declares.
            RequestError: no such precision.
        """
        if precision not in PRECISIONS:
            raise RequestError(f"precision {precision!r}; there are {', '.join(PRECISIONS)}")
        if unknown := sorted(set(feeds) - set(self.inputs)):
            raise GraphFailed(f"{self.path} has no input {', '.join(unknown)}; it has {', '.join(self.inputs)}")
        made = {name: self._feed(name, port, feeds.get(name)) for name, port in self.inputs.items()}
        return evaluate(self.program, made, precision, str(self.path))

    def widened(self) -> "Package":
        """The same with its constants in float64, which many runs in that precision would widen again each time."""
        constants = {
            name: Immediate(constant.type, constant.array.astype(np.float64))
            if constant.type.element.dtype.kind == "f"
            else constant
            for name, constant in self.program.constants.items()
        }
        return replace(self, program=replace(self.program, constants=constants))

    def _feed(self, name: str, port: Port, given: Array | None) -> Array:
        """What an input is, given or by default."""
        dtype = port.type.element.dtype
        where = f"{self.path}: the input {name}"
        if given is None:
            if not port.optional or port.default is None:
                why = "is required" if not port.optional else "is optional and has no default"
                raise GraphFailed(f"{where} {why}; give it as {port.type}")
            return np.full(port.shape, port.default, dtype)
        array = np.asarray(given)
        if array.shape != port.shape or array.dtype.kind not in "fiub":
            raise GraphFailed(f"{where} is {port.type}, and {array.dtype} {list(array.shape)} was given")
        with np.errstate(invalid="ignore", over="ignore"):
            converted = array.astype(dtype)
        if dtype.kind == "i" and not np.array_equal(converted, array):
            raise GraphFailed(f"{where} is {port.type}, and was given numbers that are not whole or too large")
        return array if dtype.kind == "f" and array.dtype.kind == "f" else converted

    def digests(self) -> Digests:
        """Hashes of every operation and every weight, by which a change is found and named; see `digest`."""
        return digests(self.program)


def _model_file(path: Path) -> Path:
    """The file that a package's manifest calls its model."""
    manifest = path / MANIFEST
    if not path.is_dir():
        raise BundleNotFound(f"{path} is not a Core ML package, which is a folder called something.mlpackage")
    if not manifest.is_file():
        raise BundleDamaged(f"{path} lacks {MANIFEST}; copy the package again or export it anew")
    if manifest.stat().st_size > MAX_MANIFEST:
        raise BundleDamaged(f"{manifest} is larger than a manifest can be ({manifest.stat().st_size} bytes)")
    told = read_object(manifest, BundleDamaged)
    try:
        version = str(told["fileFormatVersion"])
        root = str(told["itemInfoEntries"][told["rootModelIdentifier"]]["path"])
    except (KeyError, TypeError) as error:
        raise BundleDamaged(f"{manifest} lacks or misspells an entry: {error!r}") from error
    if version.split(".")[0] != "1":
        raise OperationUnknown(f"{manifest} has the format {version}, and 1 is read here")
    model = inside(path, f"Data/{root}")
    if model is None:
        raise BundleDamaged(f"{manifest} names the model {root!r}, which lies outside the package")
    if not model.is_file():
        raise BundleDamaged(f"{path} lacks its model, {model.relative_to(path)}; copy the package again")
    return model
