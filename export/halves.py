"""A graph in two: what stays the same from step to step, and the rest.

Weights with their update in them, keys and values of the prompt, factors times their scales: none of them depends on
the latents. The once half computes them, `lora_edge.halves` holds them, the step half takes them as inputs. Of what is
computed once the prompt's part is divided off again: keys and values without their update, which no change of adapters
or multipliers asks for anew.
"""

from collections.abc import Collection, Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from lora_edge.ports import has_lanes
from lora_edge.slots import HELD, HELD_BASE

WORK = frozenset(("Add", "Conv", "Identity", "MatMul", "MatMulNBits", "Mul", "Transpose"))
"""Operators whose results are worth holding. What is only cut, reshaped or read from the weights costs nothing to make
again, and would take memory."""

FIRST = {"start": 0, "end": 1}


def parts(model: ir.Model, prompt: Collection[str], varying: Collection[str], *, converts: bool) -> list[ir.Model]:
    """A finished graph in the order in which its parts run: what the prompt alone decides, if anything does; what
    adapters and their multipliers do too; what is computed in every step.

    Args:
        model: see `divide`.
        prompt: names of the plain inputs that stay from step to step.
        varying: names of those that do not.
        converts: see `divide`.
    """
    once, step = divide(model, varying, converts=converts)
    adapters = [value.name or "" for value in once.graph.inputs if value.name not in prompt]
    first, rest = divide(once, adapters, title=HELD_BASE)
    return [first, rest, step] if first.graph.outputs else [once, step]


def divide(
    model: ir.Model, varying: Collection[str], *, converts: bool = False, title: str = HELD
) -> tuple[ir.Model, ir.Model]:
    """The once half and the step half of a finished graph, which stays as it is.

    Args:
        model: after all passes; nodes in the order in which they are computed.
        varying: names of the inputs that are others in every run of the step half.
        converts: whether what is held is in another precision than what is fed; factors that the step half would take
            as they are come from the once half then, in the precision that they are used in.
        title: what the names of held values begin with.

    Returns:
        Two graphs whose inputs are together those of the model, each with its defaults. The once half's outputs are
        called `<title><layer>…`, and are inputs of the step half.
    """
    model = model.clone()
    _count_rows_of_what_stays(model, varying)
    if converts:
        _hand_over(model)
    held = _floats(model, _held(model, varying))
    titles = _titles(model, held, title)
    once, step = model.clone(), model.clone()
    outputs = {value.name: value for value in _values(once)}
    once.graph.outputs[:] = [outputs[name] for name in titles]
    for value in once.graph.outputs:
        value.shape, value.dtype = held[value.name or ""].shape, ir.DataType.FLOAT
        value.name = titles[value.name or ""]
    for value in list(_values(step)):
        if value.name in titles:
            given = ir.Value(
                name=titles[value.name], shape=held[value.name].shape, type=ir.TensorType(ir.DataType.FLOAT)
            )
            step.graph.inputs.append(given)
            ir.convenience.replace_all_uses_with(value, given)
    for half in (once, step):
        _drop_unused(half)
    return once, step


def _values(model: ir.Model) -> Iterator[ir.Value]:
    return (value for node in model.graph for value in node.outputs)


def _count_rows_of_what_stays(model: ir.Model, varying: Collection[str]) -> None:
    """Read the number of rows from an input that stays, and with it all that depends on nothing else."""
    ports = [value for value in model.graph.inputs if value.shape]
    rows = {value.shape[0]: value for value in ports if value.shape and value.name not in varying}
    for value in ports:
        if value.name not in varying or value.shape is None or value.shape[0] not in rows:
            continue
        for node in value.consumers():
            if node.op_type == "Shape" and {name: node.attributes[name].as_int() for name in node.attributes} == FIRST:
                node.replace_input_with(0, rows[value.shape[0]])


def _hand_over(model: ir.Model) -> None:
    """Have every factor go through a node, as what is held is what nodes make."""
    for value in model.graph.inputs:
        if has_lanes(value.name or ""):
            made = ir.Value(name=f"{value.name}.handed", shape=value.shape, type=value.type)
            ir.convenience.replace_all_uses_with(value, made)
            model.graph.insert_before(model.graph[0], ir.Node("", "Identity", [value], outputs=[made]))


def _held(model: ir.Model, varying: Collection[str]) -> list[str]:
    """Names of what is worth holding, and is used where something varies."""
    moving = {value for value in model.graph.inputs if value.name in varying}
    given = {*model.graph.inputs} - moving  # what is made of none of them is a constant
    worked: set[ir.Value] = set()
    for node in model.graph:
        inputs = {value for value in node.inputs if value is not None}
        if not moving.isdisjoint(inputs):
            moving.update(node.outputs)
        elif not given.isdisjoint(inputs):
            given.update(node.outputs)
            if node.op_type in WORK or not worked.isdisjoint(inputs):
                worked.update(node.outputs)
    used = (value for node in model.graph if node.outputs[0] in moving for value in node.inputs)
    return [value.name or "" for value in dict.fromkeys(used) if value in worked]


def _floats(model: ir.Model, names: Collection[str]) -> dict[str, ir.Value]:
    """Those of the values that are float32, with the shapes that can be known: a layer must know its weight's."""
    known = model.clone()
    made = {value.name: value for value in _values(known)}
    known.graph.outputs[:] = [made[name] for name in names]
    _drop_unused(known)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(known)
    return {name: made[name] for name in names if made[name].dtype in (ir.DataType.FLOAT, None)}


def _titles(model: ir.Model, names: Collection[str], title: str) -> dict[str, str]:
    """What they are called: by the layer that they are of."""
    titles: dict[str, str] = {}
    for value in _values(model):
        if value.name in names:
            own = title + _layer(value)
            titles[value.name] = f"{own}.{value.name}" if own in titles.values() else own
    return titles


def _layer(value: ir.Value) -> str:
    """The layer whose weight, bias or adapter input is the nearest that a value is made of."""
    behind = [value]
    for one in behind:  # grows while it is gone through
        node, name = one.producer(), one.name or ""
        if node is not None:
            behind += [given for given in node.inputs if given is not None]
        elif name.startswith("lora.") or name.endswith((".weight", ".bias")):
            return name.removeprefix("lora.").rpartition(".")[0]
    return value.name or ""


def _drop_unused(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
