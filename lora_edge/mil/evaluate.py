"""Running a program: one operation after the other, each result checked against what the program declares."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged, GraphFailed, OperationUnknown
from lora_edge.mil.ops import LISTS, SIGNATURES
from lora_edge.mil.ops.shapes import DeclaredOtherwise
from lora_edge.mil.program import Binding, Operation, Program
from lora_edge.mil.types import STRING, TensorType

Precision = Literal["f64", "f32", "f16"]
# Numbers are held in the type that the program declares, and in no less than this one.
LEAST: Mapping[str, Any] = {"f64": np.float64, "f32": np.float32, "f16": np.float16}
PRECISIONS = tuple(LEAST)
MEMORY = 16 << 30  # bytes that values may hold at a time
# What numpy raises when operands do not go together; a program from elsewhere can ask for anything.
REFUSALS = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, MemoryError)


def check_known(program: Program, file: str) -> None:
    """Refuse a program that asks for what is not evaluated here, before anything runs.

    Raises:
        OperationUnknown: operations or parameters that are not known.
        BundleDamaged: an operation lacks a parameter, or a parameter has several values.
    """
    unknown = sorted({operation.kind for operation in program.operations} - {*SIGNATURES, "const"})
    if unknown:
        raise OperationUnknown(f"{file} uses {', '.join(unknown)}, which the evaluator does not know")
    for operation in program.operations:
        if operation.kind == "const":
            continue
        takes = SIGNATURES[operation.kind]
        given = set(_parameters(operation))
        if extra := sorted(given - takes.required - takes.optional):
            raise OperationUnknown(f"{file}: {operation} takes {', '.join(extra)}, which the evaluator does not know")
        if lacking := sorted(takes.required - given):
            raise BundleDamaged(f"{file}: {operation} lacks its {', '.join(lacking)}")
        for parameter, bindings in _parameters(operation).items():
            if not bindings or len(bindings) > 1 and parameter not in LISTS:
                raise BundleDamaged(f"{file}: {operation} has {len(bindings)} values for its {parameter}")


def _parameters(operation: Operation) -> dict[str, tuple[Binding, ...]]:
    """Inputs, and attributes but for the name, which are constants of operations of the constexpr family."""
    own = {name: (value,) for name, value in operation.attributes.items() if name != "name"}
    return {**own, **operation.inputs}


def last_reads(program: Program) -> list[list[str]]:
    """For each operation the values that nothing after it reads: they can be given up."""
    last: dict[str, int] = {}
    for at, operation in enumerate(program.operations):
        last |= dict.fromkeys([*operation.outputs, *operation.reads], at)
    done: list[list[str]] = [[] for _ in program.operations]
    for name, at in last.items():
        if name not in program.outputs and name not in program.constants:
            done[at].append(name)
    return done


def evaluate(program: Program, feeds: Mapping[str, Array], precision: Precision, file: str) -> dict[str, Array]:
    """Run a program.

    Args:
        program: checked by `check_known`.
        feeds: every input, in its declared shape.
        precision: "f16" rounds every result to its declared type, sums being in float32; "f32" computes all of it in
            float32, and "f64" in float64.
        file: the model file, for sentences.

    Returns:
        Every output: its declared type in precision "f16", else float32 or float64.

    Raises:
        BundleDamaged: an operation makes another shape or type than the program declares.
        GraphFailed: an operation cannot be computed.
    """
    values = {name: _held(array, program.inputs[name], precision) for name, array in feeds.items()}
    held = 0
    sizes: dict[str, int] = {}
    done = last_reads(program)
    for at, operation in enumerate(program.operations):
        if operation.kind != "const":
            sizes |= {name: kind.nbytes for name, kind in operation.outputs.items()}
            held += sum(kind.nbytes for kind in operation.outputs.values())
            if held > MEMORY:
                raise GraphFailed(f"{file}: {operation} would take the memory of all values above {MEMORY >> 30} GiB")
            values |= _apply(operation, program, values, precision, file)
        for name in done[at]:
            values.pop(name, None)
            held -= sizes.pop(name, 0)
    return {name: _named(program, values, name, precision) for name in program.outputs}


def _named(program: Program, values: Mapping[str, Array], name: str, precision: Precision) -> Array:
    """A value or a constant, both as they are kept: left to numpy, a constant of fewer digits would be laid out anew
    while it is widened, and be summed in another order."""
    if name in values:
        return values[name]
    constant = program.constants[name]
    return _held(constant.array, constant.type, precision)


def _work(array: Array) -> Array:
    """What is computed with: half precision in float32."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _argument(binding: Binding, program: Program, values: Mapping[str, Array], precision: Precision) -> Any:
    array = _named(program, values, binding, precision) if isinstance(binding, str) else binding.array
    return str(array.item()) if array.dtype == object else _work(array)


def _apply(
    operation: Operation, program: Program, values: Mapping[str, Array], precision: Precision, file: str
) -> dict[str, Array]:
    takes = SIGNATURES[operation.kind]
    declared = tuple(kind.shape for kind in operation.outputs.values())
    told: dict[str, Any] = {"declared": declared} if takes.declared else {}
    try:
        for parameter, bindings in _parameters(operation).items():
            arguments = [_argument(binding, program, values, precision) for binding in bindings]
            told[parameter] = arguments if parameter in LISTS else arguments[0]
        with np.errstate(all="ignore"):
            made = takes.op(**told)
        results = made if isinstance(made, list) else [made]
        if len(results) != len(declared):
            raise DeclaredOtherwise(f"makes {len(results)} results, and the program declares {len(declared)}")
        return {
            name: _result(np.asarray(result), kind, precision)
            for (name, kind), result in zip(operation.outputs.items(), results, strict=True)
        }
    except DeclaredOtherwise as error:
        raise BundleDamaged(f"{file}: {operation} {error}") from error
    except REFUSALS as error:
        raise GraphFailed(f"{file}: {operation} cannot be computed: {error}") from error


def _result(made: Array, kind: TensorType, precision: Precision) -> Array:
    if made.shape != kind.shape:
        raise DeclaredOtherwise(f"makes {list(made.shape)}, and the program declares {list(kind.shape)}")
    if kind.element is STRING or not np.can_cast(made.dtype, kind.element.dtype, "same_kind"):
        raise DeclaredOtherwise(f"makes numbers of type {made.dtype}, and the program declares {kind.element.name}")
    return _held(made, kind, precision)


def _held(array: Array, kind: TensorType, precision: Precision) -> Array:
    """A value as it is kept: in its declared type, or in one with more digits where they are not rounded away."""
    declared = kind.element.dtype
    dtype = np.promote_types(declared, LEAST[precision]) if declared.kind == "f" else declared
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)
