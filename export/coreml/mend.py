"""A saved package edited in place: what is not read goes, and what coremltools may lose is put back.

Transforms of saved packages have lost optional flags and defaults before. The description says what is optional
(FeatureTypes.proto), the program what is read (MIL.proto).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_edge.export.coreml.library import library, quiet
from lora_edge.export.coreml.ports import Port

MODEL = Path("Data") / "com.apple.CoreML" / "model.mlmodel"  # where coremltools puts it in a package


def mend(package: Path, ports: Iterable[Port]) -> None:
    """Set optional flags and defaults again.

    Args:
        package: a saved package.
        ports: inputs with a default are made optional where the package has them.
    """
    defaults = {port.name: port.default for port in ports if port.default is not None}
    model = read_model(package)
    for feature in model.description.input:
        if feature.name in defaults:
            feature.type.isOptional = True
            feature.type.multiArrayType.floatDefaultValue = defaults[feature.name]
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def read_model(package: Path) -> Any:
    """The Model message of a package."""
    with quiet():
        model = library().proto.Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    return model


def drop_dead(model: Any) -> None:
    """Drop operations whose results nothing reads, then inputs that nothing reads."""
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    read = set(block.outputs)
    kept: list[Any] = []
    for operation in reversed(block.operations):
        if any(value.name in read for value in operation.outputs):
            kept.append(operation)
            read.update(reads(operation))
    _replace(block.operations, kept[::-1])
    for named in (function.inputs, model.description.input):
        _replace(named, [item for item in named if item.name in read])


def reads(operation: Any) -> Iterator[str]:
    """Names of the values that an operation reads."""
    return (bound.name for argument in operation.inputs.values() for bound in argument.arguments if bound.name)


def _replace(repeated: Any, items: list[Any]) -> None:
    del repeated[:]
    repeated.extend(items)
