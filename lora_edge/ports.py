"""Forms and graph inputs of one component at multiplier 1, one made from the other.

What a file holds that was written for a bundle is the second; what adapters are mixed from is the first. The base
scales of the lanes go as runs, (lanes, scale) in lane order, since a file has one scale per layer nearly always.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.bundle import Bundle
from lora_edge.cost import Cost
from lora_edge.errors import AdapterMismatch, AdapterValueError
from lora_edge.forms import Bias, ComponentForms, Form, Gain, LowRank, NormDelta
from lora_edge.mix import Mix
from lora_edge.slots import RANKS, SCALES, Slot, SlotTable

Runs = tuple[tuple[int, float], ...]
Shape = tuple[int, ...]

SHOWN = 100  # characters of a stranger's name that a sentence bears
AXES: tuple[Literal["in", "out"], ...] = ("in", "out")


@dataclass(frozen=True)
class Ports:
    """The graph inputs of one component as a file holds them, without `lora.scales` and `lora.ranks`.

    Attributes:
        shapes: graph input -> shape, known before anything is read.
        read: graph input -> a copy of its tensor, float32.
        runs: slot -> base scales of its lanes, for every slot that has lanes.
    """

    shapes: Mapping[str, Shape]
    read: Callable[[str], FloatArray]
    runs: Mapping[str, Runs]

    @property
    def cost(self) -> Cost:
        """What they take in memory."""
        lanes = sum(lanes for runs in self.runs.values() for lanes, _ in runs)
        return Cost(4 * sum(map(math.prod, self.shapes.values())), lanes)


def ports_of(bundle: Bundle, component: str, forms: ComponentForms) -> Ports:
    """What the graph is fed for these forms alone, at multiplier 1.

    Raises:
        ComponentMissing: the bundle has no such component.
        AdapterMismatch: the forms are of another bundle.
        AdapterValueError: numbers that are not finite.
    """
    table, fed = bundle.component(component).table, feeds_of(bundle, component, forms)
    scales, ranks = fed.pop(SCALES), fed.pop(RANKS)
    ports = Ports({name: array.shape for name, array in fed.items()}, fed.__getitem__, runs_of(table, scales[0], ranks))
    check_shapes(table, ports)
    return ports


def feeds_of(bundle: Bundle, component: str, forms: ComponentForms) -> dict[str, Array]:
    """The same with `lora.scales` [1, total_rank] and `lora.ranks` [slots]; raises as `ports_of`."""
    opened = bundle.component(component)
    strange = [*(forms.slots.keys() - opened.table.by_name.keys()), *(forms.norms.keys() - opened.table.norms.keys())]
    if strange:
        raise AdapterMismatch(f"the {component} of {bundle.folder} has no layer {min(strange)}; fit the adapter to it")
    norms = opened.norms() if forms.norms else {}
    mix = Mix(opened.table, [forms], norms, partial(bundle.weight, component))
    fed = mix.feeds(np.ones((1, 1), np.float32))
    broken = [name for name, array in fed.items() if not np.isfinite(array).all()]
    if broken:
        raise AdapterValueError(f"the adapter has numbers that are not finite in {broken[0]}")
    return fed


def forms_of(bundle: Bundle, component: str, ports: Ports) -> ComponentForms:
    """The inverse of `ports_of`: exact but for norms, whose change is rounded where it is larger than the norm.

    Raises:
        AdapterMismatch: a tensor that the component has no input for, that is missing, or has another shape; nothing
            was read then.
    """
    table = bundle.component(component).table
    check_shapes(table, ports)
    made = {slot.name: tuple(_forms(slot, ports)) for slot in table}
    names = [norm for norm in table.norms if not ports.shapes.keys().isdisjoint(_norm_ports(norm))]
    base = bundle.component(component).norms() if names else {}
    norms = {
        norm: NormDelta(
            *(ports.read(port) - base[port] if port in ports.shapes else None for port in _norm_ports(norm))
        )
        for norm in names
    }
    return ComponentForms({name: forms for name, forms in made.items() if forms}, norms)


def check_shapes(table: SlotTable, ports: Ports) -> None:
    """Refuse what is not exactly the inputs of a component; the message goes on from the file's name.

    Raises:
        AdapterMismatch: see `forms_of`.
    """
    strange_slots = ports.runs.keys() - table.by_name.keys()
    if strange_slots:
        raise AdapterMismatch(f"describes a slot {short(min(strange_slots))}, which {table.component} has not")
    takes, needs = inputs(table), set[str]()
    for name, runs in ports.runs.items():
        slot, rank = table.by_name[name], sum(lanes for lanes, _ in runs)
        lanes_of = {slot.port("down"): ((slot.patch, rank),), slot.port("up"): ((rank, slot.out_features),)}
        takes |= lanes_of
        needs |= lanes_of.keys()
    for port, shape in ports.shapes.items():
        if port not in takes:
            raise AdapterMismatch(f"holds {short(port)}, which {table.component} has no input for")
        if shape not in takes[port]:
            wanted = " or ".join(str(list(fitting)) for fitting in takes[port]) or "no lanes"
            raise AdapterMismatch(f"holds {short(port)} of shape {list(shape)} where {wanted} is needed")
    if missing := needs - ports.shapes.keys():
        raise AdapterMismatch(f"lacks {min(missing)}")


def has_lanes(port: str) -> bool:
    """Whether a graph input is a factor, `lora.<slot>.down` or `lora.<slot>.up`."""
    return port.startswith("lora.") and port.endswith((".down", ".up"))


def refuse_beyond(max_bytes: int | None, parts: Iterable[Ports], where: object) -> None:
    """Refuse what would take more memory than it may, before anything is read.

    Raises:
        AdapterTooLarge: it does.
    """
    costs = [part.cost for part in parts]
    whole = Cost(sum(cost.nbytes for cost in costs), sum(cost.lanes for cost in costs))
    if max_bytes is not None:
        whole.refuse_beyond(max_bytes, where)


def inputs(table: SlotTable) -> dict[str, tuple[Shape, ...]]:
    """Every input of a component by name -> its shapes; those with lanes have none until their rank is known."""
    made: dict[str, tuple[Shape, ...]] = {}
    for slot in table:
        features = {"in": slot.in_features, "out": slot.out_features}
        made |= {slot.port(leaf): () for leaf in ("down", "up")}
        made |= {slot.port(f"gain_{axis}"): ((features[axis],), (1,)) for axis in AXES}
        made[slot.port("bias")] = ((slot.out_features,),)
    return made | {port: ((channels,),) for norm, channels in table.norms.items() for port in _norm_ports(norm)}


def runs_of(table: SlotTable, scales: FloatArray, ranks: IntArray) -> dict[str, Runs]:
    """One row of `lora.scales` [total_rank] cut by `lora.ranks` [slots] -> runs of every slot that has lanes."""
    made: dict[str, Runs] = {}
    for slot, own in zip(table, np.split(scales, np.cumsum(ranks)[:-1]), strict=True):
        if own.size:
            cuts = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), own.size]
            made[slot.name] = tuple((end - start, float(own[start])) for start, end in pairwise(cuts))
    return made


def _forms(slot: Slot, ports: Ports) -> Iterator[Form]:
    if slot.name in ports.runs:
        yield from lanes_of(ports.read(slot.port("down")), ports.read(slot.port("up")), ports.runs[slot.name])
    for axis in AXES:
        port = slot.port(f"gain_{axis}")
        if port in ports.shapes:
            features = {"in": slot.in_features, "out": slot.out_features}[axis]
            yield Gain(axis, np.array(np.broadcast_to(ports.read(port), (features,))))
    if slot.port("bias") in ports.shapes:
        yield Bias(ports.read(slot.port("bias")))


def lanes_of(down: FloatArray, up: FloatArray, runs: Runs) -> Iterator[LowRank]:
    """The lanes of one slot, cut where their base scale changes; a single run is taken as it lies."""
    if len(runs) == 1:
        yield LowRank(down, up, runs[0][1])
        return
    start = 0
    for lanes, scale in runs:
        own = slice(start, start := start + lanes)
        yield LowRank(np.ascontiguousarray(down[:, own]), np.ascontiguousarray(up[own]), scale)


def _norm_ports(norm: str) -> tuple[str, str]:
    return f"{norm}.weight", f"{norm}.bias"


def short(name: object) -> str:
    """Something out of a stranger's file, no longer than a sentence bears."""
    text = repr(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
