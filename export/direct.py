"""A captured program that torch's ONNX exporter takes as it is.

The exporter first decomposes every program, and for that runs the whole model twice more on symbolic shapes: half of
the time of an export. Stable Diffusion's operators all have ONNX of their own, but for a few that change nothing.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def direct(program: ExportedProgram) -> ExportedProgram | None:
    """A copy of a program that gives itself when it is asked to decompose; the program stays as it is.

    Returns:
        None where an operator writes into what it is given, which only decomposing makes plain. Operators that have no
        ONNX are noticed by the exporter.
    """
    made = copy.copy(program)
    made._graph_module = copy.deepcopy(program.graph_module)
    graph = made.graph
    for node in list(graph.nodes):
        if node.target in _IDENTITIES and _IDENTITIES[node.target](node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.to.dtype, aten.to.device):
            node.target, node.args = aten._to_copy.default, node.args[:1]
            node.kwargs = {"dtype": node.meta["val"].dtype}
    if any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in graph.nodes):
        return None
    made.run_decompositions = lambda *_: made
    return made


def _same_type(node: Node) -> bool:
    return bool(node.args[0].meta["val"].dtype == node.meta["val"].dtype)  # type: ignore[union-attr]


_IDENTITIES: Mapping[Any, Callable[[Node], bool]] = {
    aten.dropout.default: lambda node: not node.args[2],
    aten.contiguous.default: lambda node: True,
    aten.to.dtype: _same_type,
    aten.to.device: _same_type,
}
