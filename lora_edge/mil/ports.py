"""Inputs and outputs of a package, as its description lists them (ModelDescription of Model.proto)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_edge.errors import BundleDamaged, OperationUnknown
from lora_edge.mil.types import BY_NAME, FEATURES, Shape, TensorType, check_shape
from lora_edge.mil.wire import Message


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        shape: fixed.
        dtype: "fp16", "fp32" or "int32".
        optional: may be left out.
        default: what every element of it is when it is left out; None where the package does not say.
    """

    shape: Shape
    dtype: str
    optional: bool = False
    default: float | int | None = None

    @property
    def type(self) -> TensorType:
        """As the program spells it."""
        return TensorType(BY_NAME[self.dtype], self.shape)

    def to_json(self, name: str) -> dict[str, Any]:
        """For a manifest."""
        told: dict[str, Any] = {"name": name, "shape": list(self.shape), "dtype": self.dtype}
        return told | ({"optional": True, "default": self.default} if self.optional else {})


# Of the oneof defaultOptionalValue in ArrayFeatureType: field -> how it is read.
DEFAULTS: Mapping[int, Callable[[Message], float | int]] = {
    41: lambda array: array.integer(41),
    51: lambda array: array.real(51, "<f"),
    61: lambda array: array.real(61, "<d"),
}


def read_ports(description: Message, field: int, word: str, file: str) -> dict[str, Port]:
    """The inputs or outputs of a description, in its order.

    Args:
        description: a ModelDescription.
        field: 1 for inputs, 10 for outputs.
        word: "input" or "output", for sentences.
        file: the model file, for sentences.

    Raises:
        BundleDamaged: a name twice, or a shape that cannot be.
        OperationUnknown: pictures, dictionaries, flexible shapes.
    """
    made: dict[str, Port] = {}
    for feature in description.messages(field, f"{file}: the {word} list"):
        name = feature.text(1)
        where = f"{file}: the {word} {name}"
        if name in made:
            raise BundleDamaged(f"{where} is listed twice")
        kind = feature.message(3, where)
        if 5 not in kind:
            raise OperationUnknown(f"{where} is a picture, a state or a word, and only arrays are evaluated here")
        array = kind.message(5)
        if array.integer(2) not in FEATURES:
            raise OperationUnknown(f"{where} has elements of type {array.integer(2)}, which is not evaluated here")
        if 21 in array or 31 in array:
            raise OperationUnknown(f"{where} is of a flexible shape, and only fixed shapes are evaluated here")
        shape = tuple(array.integers(1))
        check_shape(shape, where)
        found = [read(array) for field_, read in DEFAULTS.items() if field_ in array]
        optional = bool(kind.integer(1000))
        made[name] = Port(shape, FEATURES[array.integer(2)].name, optional, found[0] if found else None)
    return made


def match_types(ports: Mapping[str, Port], types: Mapping[str, TensorType], word: str, file: str) -> dict[str, Port]:
    """Ports with the shapes of the program, which a description may leave out for outputs.

    Raises:
        BundleDamaged: description and program differ.
    """
    for name in [*ports, *types]:
        if name not in ports or name not in types:
            here, lacking = ("program", "description") if name in types else ("description", "program")
            raise BundleDamaged(f"{file}: the {here} has the {word} {name}, which the {lacking} lacks")
    made: dict[str, Port] = {}
    for name, port in ports.items():
        kind = types[name]
        if port.dtype != kind.element.name or (port.shape or kind.shape) != kind.shape:
            raise BundleDamaged(
                f"{file}: the {word} {name} is {kind} in the program and {port.type} in the description"
            )
        made[name] = Port(kind.shape, port.dtype, port.optional, port.default)
    return made
