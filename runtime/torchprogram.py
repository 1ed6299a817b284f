"""The torch backend: exported programs run call by call, on a GPU or on the CPU.

A slot is the layer whose weight is `<slot>.weight`; `torchslots` says what it computes. Whether an adapter touches it
is known from what is fed, before anything is computed: no program is rebuilt for it and no weight written.

This file and `torchslots` are all of the runtime that imports torch, and are imported by nobody who did not ask for it.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lora_edge.arrays import Array
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed, first_line
from lora_edge.feeds import check_cut, check_ids, check_names
from lora_edge.graph import GraphInput
from lora_edge.runtime.operators import ATEN, INTEGERS, PREFIX
from lora_edge.runtime.programfile import Argument, Call, Device, Dtype, Ref, names_in
from lora_edge.runtime.programparts import EMBEDDING, Parts, open_parts
from lora_edge.runtime.torchslots import Carrier, Update, attention, conv, embedded, layer, linear
from lora_edge.slots import RANKS, SCALES, TOKENS, SlotTable

DEVICES: Mapping[str, Callable[[], bool]] = {  # best first
    "mps": lambda: torch.backends.mps.is_available(),
    "cuda": lambda: torch.cuda.is_available(),
    "cpu": lambda: True,
}
PRECISIONS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

LAYERS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    PREFIX + "linear.default": (functional.linear, linear),
    PREFIX + "conv2d.default": (functional.conv2d, conv),
}
ATTENTION, LOOKUP = PREFIX + "scaled_dot_product_attention.default", PREFIX + "embedding.default"

LANES, OTHERS = ("down", "up"), ("gain_in", "gain_out", "bias")
_EMPTY = np.zeros((0, 0), np.float32)

Values: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[[Values], None]


def check_device(providers: Sequence[str] | None) -> str:
    """The device to run on; the best that is here where nothing is said.

    Raises:
        BackendUnavailable: it is not one of DEVICES, or not here.
    """
    here = [name for name, is_here in DEVICES.items() if is_here()]
    wanted = tuple(providers or here[:1])
    if len(wanted) != 1 or wanted[0] not in DEVICES:
        raise BackendUnavailable(f"torch runs on one of {', '.join(DEVICES)}, and not on {', '.join(wanted)}")
    if wanted[0] not in here:
        raise BackendUnavailable(f"torch has no {wanted[0]} on this machine; it has {', '.join(here)}")
    return wanted[0]


def check_precision(precision: str | None) -> str:
    """The precision to compute in, float32 where nothing is said.

    Raises:
        BackendUnavailable: it is not one of PRECISIONS.
    """
    if (wanted := precision or "fp32") not in PRECISIONS:
        raise BackendUnavailable(f"torch computes in one of {', '.join(PRECISIONS)}, and not in {wanted}")
    return wanted


def open_program(graph: Path, entry: Mapping[str, Any], table: SlotTable) -> "TorchGraph":
    """A component's program on the CPU in float32, as it is verified; arguments and errors of `open_parts`."""
    return TorchGraph(open_parts(graph, entry, table))


class TorchGraph:
    """A component's program and its weights, on a device (the `Graph` of this backend).

    On the CPU in float32 the weights are pages of the bundle's own file, which other processes share. Inputs and
    outputs are float32 in every precision.

    Args:
        parts: the program and its weights.
        device: one of DEVICES.
        precision: of weights and what is computed with them, one of PRECISIONS.
        threads: of a run on the CPU, set for the whole process as torch has it; 0 leaves torch's own number.

    Raises:
        BundleDamaged: the program has no layer for a slot.
        BackendUnavailable: the device cannot hold the weights.
    """

    place: Any = None

    def __init__(self, parts: Parts, device: str = "cpu", precision: str = "fp32", threads: int = 0) -> None:
        self._parts, self._threads = parts, threads
        self._carry = Carrier(torch.device(device), PRECISIONS[precision])
        self.inputs: Mapping[str, GraphInput] = parts.inputs
        self.optional: Mapping[str, GraphInput] = parts.optional
        self.outputs = parts.outputs
        self._updates: dict[str, Update] = {}  # of the run at hand, as are the tokens
        self._added: list[tuple[Tensor, Tensor, Tensor]] = []
        self._steps = _compiled(parts, self._carry.device, self._updates, self._added)
        try:
            weights = {name: self._carry.weight(array) for name, array in parts.tensors.items()}
        except RuntimeError as error:
            raise BackendUnavailable(f"{device} cannot hold {parts.program.path}: {first_line(error)}") from error
        self._tensors = {value: weights[name] for value, name in parts.program.tensors.items()}
        self._norms = {
            name: value for value, name in parts.program.tensors.items() if name.rpartition(".")[0] in parts.table.norms
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_names(self._parts.table.component, feeds, self.inputs, self.optional)
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                values = self._tensors | self._plain(feeds)
                values |= {self._norms[name]: self._carry.adapter(feeds[name]) for name in feeds.keys() & self._norms}
                self._updates |= self._slots(feeds)
                for step in self._steps:
                    step(values)
                made = [values[name] for name in self._parts.program.outputs]
                return {name: _array(tensor) for name, tensor in zip(self.outputs, made, strict=True)}
        except GraphFailed:
            raise
        except Exception as error:
            raise GraphFailed(f"torch refused the inputs: {first_line(error)}") from error
        finally:
            self._updates.clear()
            self._added.clear()

    def _plain(self, feeds: Mapping[str, Array]) -> Values:
        """The required inputs; of ids, those of the base alone, while the added ones wait for the embedding."""
        given = {name: feeds[name] for name in self.inputs}
        if TOKENS in self.optional:
            ids, name = next(iter(given.values())), next(iter(given))
            table = feeds.get(TOKENS, _EMPTY)
            vocabulary = len(self._parts.tensors[EMBEDDING])
            check_ids(name, ids, vocabulary, len(table))
            if (new := ids >= vocabulary).any():
                rows = np.where(new, ids - vocabulary, 0)
                self._added.append(
                    (self._carry.plain(new[..., None]), self._carry.plain(rows), self._carry.adapter(table))
                )
                given[name] = np.where(new, 0, ids)
        return {name: self._carry.plain(array) for name, array in given.items()}

    def _slots(self, feeds: Mapping[str, Array]) -> dict[str, Update]:
        """The slots that these feeds change."""
        table = self._parts.table
        if not any(name.startswith("lora.") for name in feeds):
            return {}
        scales, ranks = feeds.get(SCALES, np.zeros((1, 0), np.float32)), feeds.get(RANKS, np.zeros(len(table), int))
        check_cut(table, scales, ranks)
        made, at, moved = {}, 0, self._carry.weight(scales)
        for slot, rank in zip(table, ranks.tolist(), strict=True):
            given = {leaf: feeds[name] for leaf in LANES + OTHERS if (name := slot.port(leaf)) in feeds}
            held = {given.get("down", _EMPTY).shape[-1], len(given.get("up", _EMPTY))}
            if held != {rank}:
                raise GraphFailed(f"{slot.name} has matrices of rank {sorted(held)}, where {RANKS} says {rank}")
            leaves = {leaf: self._carry.adapter(array) for leaf, array in given.items() if rank or leaf in OTHERS}
            if leaves:
                made[slot.name] = Update(**leaves, scale=moved[:, at : at + rank] if rank else None)
            at += rank
        return made


def _array(tensor: Tensor) -> Array:
    made = tensor.float() if tensor.is_floating_point() else tensor
    return np.ascontiguousarray(made.to("cpu").numpy())


def _compiled(
    parts: Parts, device: torch.device, updates: dict[str, Update], added: list[tuple[Tensor, Tensor, Tensor]]
) -> list[Step]:
    """What to do, in order; values go when nothing reads them any more."""
    program = parts.program
    slots = {f"{slot.name}.weight": slot for slot in parts.table}
    last = {name: index for index, call in enumerate(program.calls) for name in (*names_in(call), *call.results)}
    over: dict[int, list[str]] = {}
    for name in last.keys() - {*program.outputs}:
        over.setdefault(last[name], []).append(name)
    found, steps = set(), []
    for index, call in enumerate(program.calls):
        read = [program.tensors.get(arg.name, "") if isinstance(arg, Ref) else "" for arg in call.args]
        if call.operator in LAYERS:
            plain, changed = LAYERS[call.operator]
            weight = read[1] if len(read) > 1 else ""
            function: Callable[..., Any] = layer(plain, changed, slots.get(weight), updates)
            found.add(weight)
        elif call.operator == LOOKUP and read[:1] == [EMBEDDING]:
            function = partial(_with_added, added)
        else:
            function = _function(call)
        steps.append(_step(function, call, tuple(over.get(index, ())), device))
    if lost := slots.keys() - found:
        raise BundleDamaged(f"{program.path} has no layer of the weight {min(lost)}; export it again")
    return steps


def _with_added(added: Sequence[tuple[Tensor, Tensor, Tensor]], weight: Tensor, ids: Tensor, *_: Any) -> Tensor:
    return embedded(weight, ids, added)


def _function(call: Call) -> Callable[..., Any]:
    if call.operator == ATTENTION:
        return attention
    if call.operator in INTEGERS:
        found: Callable[..., Any] = getattr(operator, INTEGERS[call.operator])
        return found
    name, overload = ATEN[call.operator]
    found = getattr(getattr(torch.ops.aten, name), overload)
    return found


def _step(function: Callable[..., Any], call: Call, over: tuple[str, ...], device: torch.device) -> Step:
    """A call, with what it is called with looked up when it runs."""
    args, kwargs = [_getter(arg, device) for arg in call.args], dict(call.kwargs)
    named = {name: _getter(value, device) for name, value in kwargs.items()}
    (first, *_), single = call.results or ("",), not call.listed

    def run(values: Values) -> None:
        made = function(*[get(values) for get in args], **{name: get(values) for name, get in named.items()})
        if single:
            values[first] = made
        else:
            values.update(zip(call.results, made, strict=True))
        for name in over:
            del values[name]

    return run


def _getter(argument: Argument, device: torch.device) -> Callable[[Values], Any]:
    if isinstance(argument, Ref):
        return operator.itemgetter(argument.name)
    if isinstance(argument, tuple) and any(True for item in argument if isinstance(item, Ref | tuple)):
        inner = [_getter(item, device) for item in argument]
        return lambda values: [get(values) for get in inner]
    constant: Any = argument
    if isinstance(argument, Dtype):
        constant = getattr(torch, argument.name)
    elif isinstance(argument, Device):
        constant = device
    elif isinstance(argument, tuple):
        constant = list(argument)
    return lambda values: constant
