"""torch module -> ONNX graph of the plain model: torch.export, then torch's ONNX exporter, nothing added yet."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx import OnnxExporterError

from lora_edge.errors import ExportError, first_line
from lora_edge.export.direct import direct
from lora_edge.export.recipes import Port, Recipe
from lora_edge.export.stored import blank

OPSET = 23  # the first with fused Attention; GroupNormalization came with 21


def capture(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Trace a component once.

    Args:
        recipe: names of the ports and their free axes.
        module: in eval mode; its weights may be in another precision than float32, which the graph is in.
        example: one tensor per input; two rows at least, since a row of 1 would be traced as a constant.

    Raises:
        ExportError: torch cannot trace the module.
    """
    wrapped = recipe.wrap(blank(module)).eval()
    free = {port.name: dict.fromkeys(port.free, torch.export.Dim.DYNAMIC) for port in recipe.inputs}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(wrapped, example, dynamic_shapes=free)
    except Exception as error:
        raise ExportError(f"torch could not trace the {recipe.component}: {first_line(error)}") from error


def trace(recipe: Recipe, module: nn.Module, program: ExportedProgram) -> ir.Model:
    """Turn what was captured into an ONNX graph; the program stays as it is.

    Returns:
        The unoptimized graph, ports and parameters under their contract names, parameters as initializers.

    Raises:
        ExportError: torch has no ONNX for something in it.
    """
    try:
        with _quiet(), torch.no_grad():
            model = translated(program)
    except Exception as error:
        raise ExportError(f"torch could not trace the {recipe.component}: {first_line(error)}") from error
    _name_axes(model.graph, recipe.inputs)
    _name_ports(model.graph.inputs, recipe.inputs)
    _name_ports(model.graph.outputs, recipe.outputs(module))
    _name_parameters(model.graph, recipe)
    _fill(model.graph, recipe, module)
    return model


def translated(program: ExportedProgram) -> ir.Model:
    """ONNX of a program, decomposed only where it must be; raises what torch raises."""
    if (plain := direct(program)) is not None:
        with contextlib.suppress(OnnxExporterError):  # an operator has no ONNX: decomposed, it may have
            return _exported(plain)
    return _exported(program)


def _exported(program: ExportedProgram) -> ir.Model:
    made = torch.onnx.export(program, args=(), dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert made is not None
    return made.model


def _name_axes(graph: ir.Graph, ports: tuple[Port, ...]) -> None:
    """Call free axes within the graph what they are called where they come in."""
    given = [(value.shape or (), port.free) for value, port in zip(graph.inputs, ports, strict=True)]
    names = {axes[axis]: name for axes, free in given for axis, name in free.items()}
    for value in (value for node in graph for value in node.outputs if value.shape is not None):
        value.shape = ir.Shape([names.get(axis, axis) for axis in value.shape])


def _name_ports(values: "list[ir.Value]", ports: tuple[Port, ...]) -> None:
    for value, port in zip(values, ports, strict=True):
        value.name = port.name
        assert value.shape is not None
        value.shape = ir.Shape([port.free.get(axis, size) for axis, size in enumerate(value.shape)])


def _name_parameters(graph: ir.Graph, recipe: Recipe) -> None:
    for value in list(graph.initializers.values()):
        name = value.name or ""
        if name.startswith("model."):  # the wrapper's only attribute
            value.name = recipe.canonical(name.removeprefix("model."))


def _fill(graph: ir.Graph, recipe: Recipe, module: nn.Module) -> None:
    """Weights are made float32 when they are written, one at a time."""
    for name, parameter in module.named_parameters():
        value = graph.initializers.get(recipe.canonical(name))
        if value is not None and parameter.dtype != torch.float32:
            value.const_value = ir.LazyTensor(
                partial(_widened, parameter.detach()),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(parameter.shape),
                name=value.name,
            )


def _widened(stored: Tensor) -> ir.TensorProtocol:
    return ir.tensor(stored.float().numpy())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints its progress and warns of what does not concern the user; ours is shown instead."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.onnx._internal")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
