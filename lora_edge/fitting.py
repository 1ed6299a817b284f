"""Fitting an adapter file to the slots of a bundle: names to places, leaves to kinds, kinds to forms.

Whatever does not fit is collected first and refused, or reported, at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from lora_edge.adapter import Adapter, Report
from lora_edge.arrays import FloatArray
from lora_edge.basemodel import mismatch_hint
from lora_edge.dialects import Place, Spelled, spell
from lora_edge.dialects.peft import WRAPPER
from lora_edge.errors import AdapterError, AdapterMismatch, AdapterValueError, ComponentMissing
from lora_edge.forms import ComponentForms, LowRank, NormDelta
from lora_edge.kinds import Update, claim
from lora_edge.peftconfig import PeftConfig
from lora_edge.slots import SlotTable

if TYPE_CHECKING:
    from lora_edge.adapterfile import AdapterFile

BaseWeight = Callable[[str, str], FloatArray]  # (component, slot) -> the slot's own weight as in torch

SHOWN = 3  # modules that a refusal names


@dataclass
class _Misfits:
    """Modules that cannot be used, each with the error that says why."""

    errors: dict[str, AdapterError] = field(default_factory=dict)

    def add(self, module: str, reason: str | AdapterError) -> None:
        self.errors[module] = reason if isinstance(reason, AdapterError) else AdapterMismatch(reason)

    def refusal(self, file: "AdapterFile", tables: Sequence[SlotTable]) -> AdapterError:
        """One error for all: of the common class if they have one."""
        classes = {type(error) for error in self.errors.values()}
        made = classes.pop() if len(classes) == 1 else AdapterMismatch
        first = "; ".join(f"{name!r} {error}" for name, error in list(self.errors.items())[:SHOWN])
        more = f"; and {len(self.errors) - SHOWN} more" if len(self.errors) > SHOWN else ""
        hint = mismatch_hint(file.tensors, tables) if made is AdapterMismatch else ""
        counted = f"{len(self.errors)} of {len(file.modules)} modules"
        return made(f"{file.path}: {counted} cannot be used: {first}{more}{hint}")


def fit(
    file: "AdapterFile",
    tables: Sequence[SlotTable],
    component: str | None,
    strict: bool,
    base_weight: BaseWeight | None,
) -> Adapter:
    """See `AdapterFile.fit`."""
    by_component = {table.component: table for table in tables}
    if component is not None and component not in by_component:
        raise ComponentMissing(f"the bundle has no {component!r} that takes adapters; it has {', '.join(by_component)}")
    misfits = _Misfits()
    places = _places(file, spell(tables), component, misfits)
    forms = {name: ComponentForms() for name in by_component}
    kinds: set[str] = set()
    applied: list[str] = []
    for place, modules in _gathered(places).items():
        tensors = {leaf: tensor for module in modules for leaf, tensor in file.modules[module].items()}
        try:
            if len(tensors) < sum(len(file.modules[module]) for module in modules):
                raise AdapterMismatch(f"means the same layer as {' and '.join(map(repr, modules))}")
            kind = claim(tensors.keys())
            result = kind.form(_update(file, by_component[place.component], place, modules[0], tensors, base_weight))
        except AdapterValueError:
            raise
        except AdapterError as error:
            for module in modules:
                misfits.add(module, error)
            continue
        if isinstance(result, NormDelta):
            forms[place.component].norms[place.path] = result
        else:
            forms[place.component].slots[place.path] = result
        kinds.add(kind.name)
        applied += tensors.values()
    if misfits.errors and (strict or not applied):
        raise misfits.refusal(file, tables)
    unused = {tensor: f"{module!r} {error}" for module, error in misfits.errors.items()
              for tensor in file.modules[module].values()}  # fmt: skip
    used = {name: part for name, part in forms.items() if part.slots or part.norms}
    report = Report(tuple(applied), unused, tuple(_warnings(used)))
    return Adapter(file.name, tuple(sorted(kinds)), used, file.metadata, report, file.path)


def _places(
    file: "AdapterFile", spelled: Mapping[str, Spelled], component: str | None, misfits: _Misfits
) -> dict[str, Place]:
    """Module -> the one place that it means."""
    found = {module: spelled[module].places for module in file.modules if module in spelled}
    wanted = {component} if component else _fitting_components(found.values())
    made: dict[str, Place] = {}
    for module in file.modules:
        every = found.get(module, ())
        places = [place for place in every if place.component in wanted]
        if component is None and (len(every) == 1 or not places):
            places = list(every)
        if len(places) == 1:
            made[module] = places[0]
        elif places:
            meant = " or ".join(f"{place.path} of {place.component}" for place in places)
            misfits.add(module, f"may mean {meant}; say which with component=")
        elif every:
            misfits.add(module, f"belongs to {every[0].component} and not to {component}")
        else:
            misfits.add(module, "names no layer of the bundle")
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


def _update(
    file: "AdapterFile",
    table: SlotTable,
    place: Place,
    module: str,
    tensors: Mapping[str, str],
    base_weight: BaseWeight | None,
) -> Update:
    slot = table.by_name.get(place.path)
    config = file.configs.get(place.component, file.configs.get(""))
    return Update(
        name=module,
        shape=slot.weight_shape if slot else (table.norms[place.path],),
        tensors={leaf: file.read(tensor) for leaf, tensor in tensors.items()},
        config_scale=_config_scale(config, module, place.component),
        base_weight=partial(base_weight, place.component, place.path) if base_weight and slot else None,
    )


def _config_scale(config: PeftConfig | None, module: str, component: str) -> Callable[[int], float] | None:
    """The settings name a module by its path in the model, without PEFT's wrapper and the component."""
    own = module.removeprefix(WRAPPER).removeprefix(f"{component}.")
    return partial(config.scale, own) if config else None


def _warnings(used: Mapping[str, ComponentForms]) -> Iterator[str]:
    off = [
        f"{path} of {component}"
        for component, part in used.items()
        for path, forms in part.slots.items()
        if any(isinstance(form, LowRank) and form.scale == 0 for form in forms)
    ]
    if off:
        yield f"alpha is 0 in {len(off)} modules, which therefore have no effect (first: {off[0]})"
