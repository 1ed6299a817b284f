"""A graph in parts: what stays the same from step to step, and the rest.

Weights with their update in them, keys and values of the prompt, factors times their scales: none of them depends on
the latents. What does not is computed once, `lora_edge.parts` holds it, and what is computed in every step takes it as
inputs. Nor does all of it depend on everything: a change of adapters leaves alone what the prompt's words give without
an update, another prompt leaves the weights alone.
"""

from collections.abc import Collection, Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from lora_edge.export.patterns.pattern import LATE
from lora_edge.ports import has_lanes
from lora_edge.slots import HELD

PARTS = ("prompt", "weights", "states", "step")
"""In the order in which they run: what the prompt alone decides; what adapters and multipliers alone do; what both do
together, keys and values; what the latents do. A graph has those of them that make something."""

WORK = frozenset(("Add", "Conv", "Identity", "MatMul", "MatMulNBits", "Mul", "Transpose"))
"""Operators whose results are worth holding. What is only cut, reshaped or read from the weights costs nothing to make
again, and would take memory."""

FIRST = {"start": 0, "end": 1}


def parts(model: ir.Model, prompt: Collection[str], varying: Collection[str], *, converts: bool) -> dict[str, ir.Model]:
    """A finished graph in PARTS.

    Args:
        model: see `divide`.
        prompt: names of the plain inputs that stay from step to step.
        varying: names of those that do not.
        converts: see `divide`.
    """
    once, step = divide(model, varying, converts=converts)
    adapters = [name for value in once.graph.inputs if (name := value.name or "") not in prompt]
    base, rest = divide(once, adapters, title=f"{HELD}base.")
    states = [name for value in rest.graph.inputs if (name := value.name or "") not in adapters]
    weights, states_of_both = divide(rest, states, title=f"{HELD}factors.")
    made = dict(zip(PARTS, (base, weights, states_of_both, step), strict=True))
    return {name: part for name, part in made.items() if part.graph.outputs}


def divide(
    model: ir.Model, varying: Collection[str], *, converts: bool = False, title: str = HELD
) -> tuple[ir.Model, ir.Model]:
    """What stays of a finished graph and what does not; the graph itself stays as it is.

    Args:
        model: after all passes; nodes in the order in which they are computed.
        varying: names of the inputs that are others in every run of the second half.
        converts: whether what is held is in another precision than what is fed; factors that the second half would take
            as they are come from the first one then, in the precision that they are used in.
        title: what the names of held values begin with.

    Returns:
        Two graphs whose inputs are together those of the model, each with its defaults. Outputs of the model on which
        nothing that varies has a part are the first one's. Its others are called `<title><layer>…`, and the second one
        takes them as inputs.
    """
    model = model.clone()
    _count_rows_of_what_stays(model, varying)
    if converts:
        _hand_over(model)
    moving, worked = _traced(model, varying)
    settled = {value.name: value.name for value in model.graph.outputs if value not in moving}
    used = (value for node in model.graph if node.outputs[0] in moving for value in node.inputs)
    wanted = [value.name for value in dict.fromkeys(used) if value in worked and value.name not in settled]
    held = _floats(model, wanted) | {value.name: value for value in model.graph.outputs if value.name in settled}
    titles = settled | _titles(model, held.keys() - settled, title)
    once, step = model.clone(), model.clone()
    outputs = {value.name: value for value in _values(once)}
    once.graph.outputs[:] = [outputs[name] for name in titles]
    for value in once.graph.outputs:
        value.shape, value.dtype = held[value.name].shape, ir.DataType.FLOAT
        value.name = titles[value.name]
    step.graph.outputs[:] = [value for value in step.graph.outputs if value.name not in settled]
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


def _traced(model: ir.Model, varying: Collection[str]) -> tuple[set[ir.Value], set[ir.Value]]:
    """What depends on something that varies, or is done along with that; what does not, and is worth holding."""
    moving = {value for value in model.graph.inputs if value.name in varying}
    given = {*model.graph.inputs} - moving  # what is made of none of them is a constant
    worked: set[ir.Value] = set()
    for node in model.graph:
        inputs = {value for value in node.inputs if value is not None}
        if LATE in node.meta or not moving.isdisjoint(inputs):
            moving.update(node.outputs)
        elif not given.isdisjoint(inputs):
            given.update(node.outputs)
            if node.op_type in WORK or not worked.isdisjoint(inputs):
                worked.update(node.outputs)
    return moving, worked


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
