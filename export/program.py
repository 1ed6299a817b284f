"""The traced program as a `.pt2` file beside the ONNX graph, for backends that run torch without model code.

The file is torch's own (`torch.export.load` reads it), of the plain component: a slot is the layer whose weight is
`<slot>.weight`, and who runs the program puts updates there (`runtime/torchprogram.py` does). Its weights are not in
it: they lie in the ONNX graph's data file already. In the `.pt2` they are tensors on the device "meta", and only what
that file lacks is written.
"""

import operator
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from lora_edge.errors import ExportError, first_line
from lora_edge.export.recipes import Recipe
from lora_edge.export.weights import DTYPES
from lora_edge.slots import SlotTable

FILE = "model.pt2"
_ENDLESS = 2**63 - 1
_NAMED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
aten = torch.ops.aten


def write_program(
    program: ExportedProgram,
    recipe: Recipe,
    module: nn.Module,
    table: SlotTable,
    example: tuple[Tensor, ...],
    model: ir.Model,
    folder: Path,
) -> dict[str, Any]:
    """Write `model.pt2`.

    Args:
        program: the traced component; changed in place, since nothing else is done with it.
        recipe: how it was traced.
        module: what it was traced from.
        table: its slots.
        example: what it was traced with.
        model: the finished ONNX graph, its tensors in the data file.
        folder: of the component, where the graph lies.

    Returns:
        What the manifest says of it, see `runtime/programparts.py`.

    Raises:
        ExportError: torch cannot write it.
    """
    _clean(program)
    held = _rename(program, recipe)
    places = {name: place for name, tensor in held.items() if (place := _place(model, table, name, tensor))}
    stored = {recipe.canonical(name): parameter for name, parameter in module.named_parameters()}
    program._state_dict = {
        name: _elsewhere(tensor) if name in places else _whole(stored.get(name, tensor))
        for name, tensor in program._state_dict.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that weights on "meta" are nowhere, as they should
            torch.export.save(program, folder / FILE)
    except Exception as error:
        raise ExportError(
            f"torch could not write the program of the {recipe.component}: {first_line(error)}"
        ) from error
    return {
        "inputs": {
            port.name: {
                "shape": [port.free.get(axis, size) for axis, size in enumerate(tensor.shape)],
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for port, tensor in zip(recipe.inputs, example, strict=True)
        },
        "outputs": [port.name for port in recipe.outputs(module)],
        "tensors": places,
    }


def _clean(program: ExportedProgram) -> None:
    """Drop calls that change nothing, example inputs, and what tells of the machine that exported."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and _IDENTITIES.get(node.target, _never)(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    _drop_unused_tensors(program)
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    (end,) = (node for node in graph.nodes if node.op == "output")
    for spec, value in zip(program.graph_signature.output_specs, end.args[0], strict=True):
        spec.arg.name = value.name
    program._example_inputs = None
    program._module_call_graph = program._module_call_graph[:1]


def _drop_unused_tensors(program: ExportedProgram) -> None:
    """A half of an autoencoder is traced with the tensors of both."""
    signature = program.graph_signature
    unused = {node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    gone = [spec for spec in signature.input_specs if spec.kind in _NAMED and spec.arg.name in unused]
    for node in list(program.graph.nodes):
        if node.name in {spec.arg.name for spec in gone}:
            program.graph.erase_node(node)
    signature.input_specs[:] = [spec for spec in signature.input_specs if spec not in gone]
    for spec in gone:
        program._state_dict.pop(spec.target or "", None)
        program._constants.pop(spec.target or "", None)


def _never(node: Node) -> bool:
    return False


def _same_type(node: Node) -> bool:
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return bool(before.dtype == after.dtype and before.device == after.device)


def _by(node: Node, neutral: int) -> bool:
    return bool(not isinstance(node.args[1], Node) and node.args[1] == neutral and _same_type(node))


def _unused(node: Node) -> bool:
    return not node.users


_IDENTITIES: Mapping[Any, Callable[[Node], bool]] = {
    aten.dropout.default: lambda node: not node.args[2],
    aten.to.dtype: _same_type,
    aten.to.device: _same_type,
    aten.div.Tensor: lambda node: _by(node, 1),
    aten.mul.Tensor: lambda node: _by(node, 1),
    aten.add.Tensor: lambda node: _by(node, 0),
    aten.slice.Tensor: lambda node: tuple(node.args[2:4]) == (0, _ENDLESS) and len(node.args) == 4,
    aten._assert_tensor_metadata.default: _unused,
    aten._assert_scalar.default: _unused,
    aten.sym_constrain_range_for_size.default: _unused,
    operator.pos: lambda node: True,
}


def _rename(program: ExportedProgram, recipe: Recipe) -> dict[str, Tensor]:
    """Tensors under the names of the graph contract, there and in the program."""

    def ours(name: str) -> str:
        return recipe.canonical(name.removeprefix("model."))  # the wrapper's only attribute

    for spec in program.graph_signature.input_specs:
        if spec.kind in _NAMED and spec.target is not None:
            spec.target = ours(spec.target)
    program._state_dict = {ours(name): tensor for name, tensor in program.state_dict.items()}
    program._constants = {ours(name): value for name, value in program.constants.items()}
    held = {**program._state_dict, **program._constants}
    return {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}


def _elsewhere(tensor: Tensor) -> Tensor:
    shape = tensor.detach().to("meta")
    return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape


def _whole(tensor: Tensor) -> Tensor:
    """The values themselves: tracing has seen shapes alone, and the module may hold them in half precision."""
    full = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    return nn.Parameter(full, requires_grad=False) if isinstance(tensor, nn.Parameter) else full


def _place(model: ir.Model, table: SlotTable, name: str, tensor: Tensor) -> dict[str, Any] | None:
    """Where the ONNX graph keeps a tensor; None where it keeps it elsewhere than in its data file, or changed."""
    value = model.graph.initializers.get(name)
    found = value.const_value if value is not None else None
    slot = table.by_name.get(name.removesuffix(".weight"))
    turned = slot is not None and slot.kernel is None and name.endswith(".weight")  # insert_slots did
    shape = list(reversed(tensor.shape) if turned else tensor.shape)
    if not isinstance(found, ir.ExternalTensor) or found.dtype not in DTYPES or list(found.shape.numpy()) != shape:
        return None
    return {"offset": found.offset or 0, "dtype": DTYPES[found.dtype], "shape": shape, "transposed": turned}
