"""What a file will do to a bundle, from its header alone: names to places, leaves to kinds, shapes to sizes.

Nothing is read for it, so that whatever does not fit or is too large is refused before it costs anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_edge.basemodel import mismatch_hint
from lora_edge.cost import Cost
from lora_edge.dialects import Place, Spelled, spell
from lora_edge.errors import AdapterError, AdapterMismatch, ComponentMissing
from lora_edge.kinds import Kind, Size, claim
from lora_edge.slots import Slot, SlotTable

if TYPE_CHECKING:
    from lora_edge.adapterfile import AdapterFile

SHOWN = 3  # modules that a refusal names


@dataclass(frozen=True)
class Part:
    """What a file has for one layer.

    Attributes:
        place: the layer.
        slot: its slot, None for a norm.
        modules: what the file calls it, one name unless a file mixes namings.
        tensors: leaf -> name of the tensor.
        kind: what they are.
        shape: of the layer's weight.
        size: what the forms will take.
    """

    place: Place
    slot: Slot | None
    modules: tuple[str, ...]
    tensors: Mapping[str, str]
    kind: Kind
    shape: tuple[int, ...]
    size: Size


@dataclass
class Misfits:
    """What cannot be used, each with the error that says why.

    Attributes:
        errors: module -> why.
        tensors: module -> its tensors.
    """

    errors: dict[str, AdapterError] = field(default_factory=dict)
    tensors: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, module: str, tensors: Iterable[str], reason: str | AdapterError) -> None:
        self.errors[module] = reason if isinstance(reason, AdapterError) else AdapterMismatch(reason)
        self.tensors[module] = tuple(tensors)

    def refusal(self, file: "AdapterFile", tables: Sequence[SlotTable]) -> AdapterError:
        """One error for all: of the common class if they have one."""
        classes = {type(error) for error in self.errors.values()}
        made = classes.pop() if len(classes) == 1 else AdapterMismatch
        first = "; ".join(f"{name!r} {error}" for name, error in list(self.errors.items())[:SHOWN])
        more = f"; and {len(self.errors) - SHOWN} more" if len(self.errors) > SHOWN else ""
        hint = mismatch_hint(file.tensors, tables) if made is AdapterMismatch else ""
        counted = f"{len(self.errors)} of {len(file.modules) + len(file.bundled)} modules"
        return made(f"{file.path}: {counted} cannot be used: {first}{more}{hint}")

    def unused(self) -> dict[str, str]:
        """Tensor -> why it has no effect."""
        return {
            tensor: f"{module!r} {error}" for module, error in self.errors.items() for tensor in self.tensors[module]
        }


@dataclass(frozen=True)
class Plan:
    """All parts of a file that fit, and what does not."""

    parts: tuple[Part, ...]
    misfits: Misfits

    def cost(self) -> Cost:
        """What the parts will take."""
        full = [part for part in self.parts if part.size.full]
        return Cost(
            sum(part.size.nbytes(part.shape) for part in self.parts),
            sum(part.size.lanes for part in self.parts),
            tuple(f"{part.place.path} of {part.place.component}" for part in full),
            sum(part.size.nbytes(part.shape) for part in full),
        )


def plan(file: "AdapterFile", tables: Sequence[SlotTable], component: str | None) -> Plan:
    """What a file will do to the slots and norms of the tables; component: the only one to change, None for all.

    Raises:
        ComponentMissing: the tables have no such component.
    """
    by_component = {table.component: table for table in tables}
    if component is not None and component not in by_component:
        raise ComponentMissing(f"the bundle has no {component!r} that takes adapters; it has {', '.join(by_component)}")
    misfits = Misfits()
    parts = []
    for place, modules in _gathered(_places(file, spell(tables), component, misfits)).items():
        try:
            parts.append(_part(file, by_component[place.component], place, modules))
        except AdapterError as error:
            for module in modules:
                misfits.add(module, file.modules[module].values(), error)
    return Plan(tuple(parts), misfits)


def _part(file: "AdapterFile", table: SlotTable, place: Place, modules: Sequence[str]) -> Part:
    tensors = {leaf: tensor for module in modules for leaf, tensor in file.modules[module].items()}
    if len(tensors) < sum(len(file.modules[module]) for module in modules):
        raise AdapterMismatch(f"means the same layer as {' and '.join(map(repr, modules))}")
    slot = table.by_name.get(place.path)
    shape = slot.weight_shape if slot else (table.norms[place.path],)
    shapes = {leaf: file.tensors.shape(tensor) for leaf, tensor in tensors.items()}
    kind = claim(tensors.keys(), shapes=shapes)
    return Part(place, slot, tuple(modules), tensors, kind, shape, kind.size(shapes, shape))


def _places(
    file: "AdapterFile", spelled: Mapping[str, Spelled], component: str | None, misfits: Misfits
) -> dict[str, Place]:
    """Module -> the one place that it means."""
    found = {module: spelled[module].places for module in file.modules if module in spelled}
    wanted = {component} if component else _fitting_components(found.values())
    made: dict[str, Place] = {}
    for module, tensors in file.modules.items():
        every = found.get(module, ())
        places = [place for place in every if place.component in wanted]
        if component is None and (len(every) == 1 or not places):
            places = list(every)
        if len(places) == 1:
            made[module] = places[0]
        elif places:
            meant = " or ".join(f"{place.path} of {place.component}" for place in places)
            misfits.add(module, tensors.values(), f"may mean {meant}; say which with component=")
        elif every:
            misfits.add(module, tensors.values(), f"belongs to {every[0].component} and not to {component}")
        else:
            misfits.add(module, tensors.values(), "names no layer of the bundle")
    return made


def _fitting_components(found: Iterable[tuple[Place, ...]]) -> set[str]:
    """The components that names without a component may mean: those which have a layer for every one of them."""
    sets = [{place.component for place in places} for places in found]
    shared = set[str]().union(*(names for names in sets if len(names) > 1))
    touching = [names & shared for names in sets if names & shared]
    return shared.intersection(*touching)


def _gathered(places: Mapping[str, Place]) -> dict[Place, list[str]]:
    """Place -> the modules that mean it, one unless a file mixes namings."""
    made: dict[Place, list[str]] = {}
    for module, place in places.items():
        made.setdefault(place, []).append(module)
    return made
