"""A program becomes an ML program: torch.export, then coremltools."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_edge.errors import ExportError, first_line
from lora_edge.export.coreml.library import library, quiet
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.ports import Port
from lora_edge.export.coreml.programs import Program

NUMPY = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}


def convert(program: Program, options: Options) -> Any:
    """The converted model, not saved yet.

    Every output is float32: Apple's classes read them so, and some Macs have no other.

    Raises:
        ExportError: torch or coremltools cannot convert the module.
    """
    ct = library()
    module, example = program.traced
    precision = {
        "fp16": ct.transform.FP16ComputePrecision(op_selector=_Half(norms=options.attention == "original")),
        "fp32": ct.precision.FLOAT32,
    }[options.precision]
    try:
        with quiet(), torch.no_grad():
            return ct.convert(
                _exported(module, example),
                convert_to="mlprogram",
                inputs=[_tensor_type(ct, port) for port in (*program.inputs, *program.adapter_ports)],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in program.outputs],
                minimum_deployment_target=getattr(ct.target, options.os),
                compute_precision=precision,
                pass_pipeline=_passes(ct, options),
                skip_model_load=True,
            )
    except Exception as error:
        raise ExportError(f"{program.package} could not be converted to Core ML: {first_line(error)}") from error


def _passes(ct: Any, options: Options) -> Any:
    """coremltools' own; in float32 without the one that turns `x * weight + bias` into a batch norm and leaves its
    default epsilon in, which divides every norm's result by sqrt(1 + 1e-5): 1 in float16, but not in float32."""
    pipeline = ct.PassPipeline()
    pipeline.remove_passes({"common::fuse_elementwise_to_batchnorm"} if options.precision == "fp32" else set())
    return pipeline


def _exported(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Traced, with operations as coremltools knows them: it has none for a second name of a tensor."""
    exported: torch.export.ExportedProgram = torch.export.export(module, example).run_decompositions({})
    for node in list(exported.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            exported.graph.erase_node(node)
    return exported


def _tensor_type(ct: Any, port: Port) -> Any:
    dtype = NUMPY[port.dtype]
    default = None if port.default is None else np.full(port.shape, port.default, dtype)
    return ct.TensorType(name=port.name, shape=port.shape, dtype=dtype, default_value=default)


class _Half:
    """Tells which operations are computed in half precision: all but

    - sine, cosine and what feeds these alone: angles reach 1000 radians, where float16 has steps of 0.5;
    - the variance that norms divide by: float16 ends at 65504, which is the square of 256, and decoders of images have
      larger activations than that. The Neural Engine's layout has norms that bear half precision (`norms`).
    """

    def __init__(self, norms: bool) -> None:
        self._norms = norms
        self._exact: set[str] | None = None

    def __call__(self, operation: Any) -> bool:
        if self._exact is None:  # the first question comes before anything is changed
            self._exact = self._find(operation.enclosing_block.operations)
        return operation.name not in self._exact

    def _find(self, operations: Sequence[Any]) -> set[str]:
        exact = {operation.name for operation in operations if operation.op_type in ("sin", "cos")}
        for operation in operations if self._norms else ():
            made_of = {value.op.name for value in operation.inputs.values() if getattr(value, "op", None) is not None}
            if operation.op_type == "square" or (operation.op_type in _VARIANCE and made_of & exact):
                exact.add(operation.name)
        for operation in reversed(operations):
            users = [user for value in operation.outputs for user in value.child_ops]
            if users and all(user.name in exact for user in users):
                exact.add(operation.name)
        return exact


_VARIANCE = ("reduce_mean", "add", "sqrt")  # from squares to what is divided by
