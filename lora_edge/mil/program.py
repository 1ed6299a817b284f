"""A program in MIL (MIL.proto): one function, one block, a list of operations."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_edge.errors import BundleDamaged, OperationUnknown
from lora_edge.mil.types import TensorType, read_type
from lora_edge.mil.values import Blobs, Constant, read_value
from lora_edge.mil.wire import Message

Binding = str | Constant
MAIN = "main"


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: `conv`, `matmul`, …
        inputs: parameter -> what it is bound to: names of values, or constants; most have one.
        outputs: name -> type, in order.
        attributes: constants that belong to the operation itself.
        message: as it is written.
    """

    kind: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: Mapping[str, TensorType]
    attributes: Mapping[str, Constant]
    message: Message

    @property
    def name(self) -> str:
        """Its first output, which no other operation has."""
        return next(iter(self.outputs))

    @property
    def reads(self) -> list[str]:
        """Names of the values that it reads."""
        return [bound for bindings in self.inputs.values() for bound in bindings if isinstance(bound, str)]

    def __str__(self) -> str:
        return f"the op {self.name} ({self.kind})"


@dataclass(frozen=True)
class Program:
    """A function of a program, operations before what reads them.

    Attributes:
        opset: `CoreML7`, …
        inputs: name -> type.
        outputs: name -> type.
        operations: in the order in which they run.
        constants: values of `const` operations by name.
    """

    opset: str
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]


def read_program(message: Message, blobs: Blobs, file: str) -> Program:
    """The function `main` of a Program.

    Args:
        message: a Program of MIL.proto.
        blobs: the weight files.
        file: the model file, for sentences.

    Raises:
        BundleDamaged: it cannot be read, a name is made twice or is read before it is made, a weight is not there.
        OperationUnknown: several functions, or types that are not evaluated here.
    """
    functions = message.entries(2)
    if list(functions) != [MAIN]:
        raise OperationUnknown(f"{file} has the functions {sorted(functions)}, and only one, {MAIN}, is evaluated here")
    function = Message(functions[MAIN], f"{file}: the function {MAIN}")
    opset = function.text(2)
    blocks = function.entries(3)
    if list(blocks) != [opset]:
        raise BundleDamaged(f"{file}: the function is written for {opset!r} and has blocks for {sorted(blocks)}")
    block = Message(blocks[opset], f"{file}: the program")
    inputs = _named_types(function, 1, file, "the input")
    types = dict(inputs)
    operations, constants = [], {}
    for view in block.views(3):
        operation = _operation(view, blobs, file)
        for name in operation.reads:
            if name not in types:
                raise BundleDamaged(f"{file}: {operation} reads {name}, which nothing before it makes")
        for name, kind in operation.outputs.items():
            if name in types:
                raise BundleDamaged(f"{file}: {name} is made twice, the second time by {operation}")
            types[name] = kind
        if operation.kind == "const":
            constants[operation.name] = _constant(operation, file)
        operations.append(operation)
    outputs = block.texts(2)
    for name in outputs:
        if name not in types:
            raise BundleDamaged(f"{file}: the output {name} is made by no operation")
    return Program(opset, inputs, {name: types[name] for name in outputs}, tuple(operations), constants)


def _constant(operation: Operation, file: str) -> Constant:
    value = operation.attributes.get("val")
    if value is None or len(operation.outputs) != 1 or value.type != operation.outputs[operation.name]:
        told = f"it holds {value.type}" if value else "it holds no value"
        raise BundleDamaged(f"{file}: {operation} should be {operation.outputs[operation.name]}, and {told}")
    return value


def _operation(view: memoryview, blobs: Blobs, file: str) -> Operation:
    message = Message(view, f"{file}: an operation")
    kind = message.text(1)
    outputs = _named_types(message, 3, file, f"the result of a {kind}")
    if not outputs:
        raise OperationUnknown(f"{file} has an operation {kind!r} without a result, which is not evaluated here")
    name = next(iter(outputs))
    message.where = where = f"{file}: the op {name} ({kind})"
    if 4 in message:
        raise OperationUnknown(f"{where} has branches or a loop, which is not evaluated here")
    inputs = {
        parameter: tuple(_binding(item, blobs, f"{name}.{parameter}", where) for item in Message(value, where).views(1))
        for parameter, value in message.entries(2).items()
    }
    attributes = {
        attribute: read_value(value, blobs, name if attribute == "val" else f"{name}.{attribute}", where)
        for attribute, value in message.entries(5).items()
    }
    return Operation(kind, inputs, outputs, attributes, message)


def _binding(view: memoryview, blobs: Blobs, name: str, where: str) -> Binding:
    message = Message(view, where)
    value = message.view(2)
    return message.text(1) if value is None else read_value(value, blobs, name, where)


def _named_types(message: Message, field: int, file: str, word: str) -> dict[str, TensorType]:
    made: dict[str, TensorType] = {}
    for item in message.messages(field, f"{file}: {word}"):
        name = item.text(1)
        if not name or name in made:
            raise BundleDamaged(f"{file}: {word} {name!r} has no name or one that is taken")
        made[name] = read_type(item.message(2, f"{file}: {word} {name}"))
    return made
