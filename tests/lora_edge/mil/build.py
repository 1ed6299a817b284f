"""Programs written operation by operation with coremltools' builder, saved as packages."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil import Function, Program
from coremltools.converters.mil.mil import types

Build = Callable[..., Any]
TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}


def program(
    outputs: Mapping[str, Build], inputs: Mapping[str, np.ndarray[Any, Any]], path: Path, system: str = "iOS17"
) -> Path:
    """Save a program in which each output is `build(mb, *inputs)`, as it is written: no pass of the converter runs."""
    target = getattr(ct.target, system)
    placed = {name: mb.placeholder(shape=array.shape, dtype=TYPES[array.dtype.name]) for name, array in inputs.items()}
    made = Program()
    with Function(placed, opset_version=target) as function:
        variables = [function.inputs[name] for name in placed]
        function.set_outputs([mb.identity(x=build(mb, *variables), name=name) for name, build in outputs.items()])
        made.add_function("main", function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            made,
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    model.save(str(path))
    return path


def inferred(build: Build, *inputs: np.ndarray[Any, Any], system: str = "iOS17") -> np.ndarray[Any, Any] | None:
    """What coremltools itself computes for constant operands; None where it does not."""
    with Function({}, opset_version=getattr(ct.target, system)):
        value = build(mb, *(mb.const(val=array) for array in inputs)).val
    return None if value is None else np.asarray(value)
