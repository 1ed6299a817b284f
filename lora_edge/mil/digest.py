"""Hashes of the parts of a program, so that a change is found and its place can be named.

An operation's line is `<kind> <inputs> <outputs> <attributes>`: its name in MIL and the first 12 hex digits of three
sha256. Maps are hashed in the order of their bytes, as a protobuf may write them in any order.
"""

import hashlib
from collections.abc import Iterable, Mapping

from lora_edge.mil.program import Operation, Program
from lora_edge.mil.values import Stored

Digests = dict[str, dict[str, str]]

DIGITS = 12
# What an operation's line says after its kind: field of Operation in MIL.proto, whether it is a map.
PARTS = {2: True, 3: False, 5: True}


def digests(program: Program) -> Digests:
    """`ops`: first output of an operation -> its line; `weights`: name -> sha256 of its bytes in the weight file.

    Raises:
        BundleDamaged: a weight does not lie where the program says.
    """
    return {"ops": {operation.name: line(operation) for operation in program.operations}, "weights": _weights(program)}


def line(operation: Operation) -> str:
    """One operation."""
    hashed = [_hash(_ordered(operation.message.views(field), is_map)) for field, is_map in PARTS.items()]
    return " ".join([operation.kind, *hashed])


def _ordered(views: list[memoryview], is_map: bool) -> Iterable[bytes]:
    parts = [bytes(view) for view in views]
    return sorted(parts) if is_map else parts


def _hash(parts: Iterable[bytes]) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()[:DIGITS]


def _weights(program: Program) -> dict[str, str]:
    stored: dict[str, Stored] = {}
    for operation in program.operations:
        held: Mapping[str, object] = operation.attributes
        bound = [item for bindings in operation.inputs.values() for item in bindings]
        stored |= {value.name: value for value in [*held.values(), *bound] if isinstance(value, Stored)}
    return {name: hashlib.sha256(value.bytes).hexdigest() for name, value in stored.items()}
