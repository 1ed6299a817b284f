"""Fitting an adapter file to the slots of a bundle: its parts are read one by one and become forms.

Whatever does not fit is collected first and refused, or reported, at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lora_edge.adapter import Adapter, Report
from lora_edge.baseweights import BaseWeights
from lora_edge.dialects.peft import WRAPPER
from lora_edge.embedding import Embedding
from lora_edge.embeddingfile import bundled_embeddings
from lora_edge.errors import AdapterError, AdapterFileDamaged, AdapterValueError
from lora_edge.forms import ComponentForms, LowRank, NormDelta
from lora_edge.kinds import Update
from lora_edge.peftconfig import PeftConfig
from lora_edge.planning import Misfits, Part, plan
from lora_edge.slots import SlotTable

if TYPE_CHECKING:
    from lora_edge.adapterfile import AdapterFile


def fit(
    file: "AdapterFile",
    tables: Sequence[SlotTable],
    component: str | None,
    strict: bool,
    base: BaseWeights | None,
    max_bytes: int | None,
) -> Adapter:
    """See `AdapterFile.fit`."""
    planned = plan(file, tables, component)
    misfits, cost = planned.misfits, planned.cost()
    embeddings = _bundled(file, misfits)
    if misfits.errors and (strict or not planned.parts):
        raise misfits.refusal(file, tables)
    if max_bytes is not None:
        cost.refuse_beyond(max_bytes, file.path)
    forms = {table.component: ComponentForms() for table in tables}
    kinds: set[str] = set()
    applied: list[str] = []
    for part in planned.parts:
        try:
            update = _update(file, part, base)
            with np.errstate(all="ignore"):  # kinds refuse what is not finite
                result = part.kind.form(update)
        except AdapterValueError as error:
            raise _named(error, file, part) from None
        except AdapterFileDamaged:  # cut since it was opened: the rest is not to be trusted, strict or not
            raise
        except AdapterError as error:
            for module in part.modules:
                misfits.add(module, file.modules[module].values(), error)
            continue
        if isinstance(result, NormDelta):
            forms[part.place.component].norms[part.place.path] = result
        else:
            forms[part.place.component].slots[part.place.path] = result
        kinds.add(part.kind.name)
        applied += part.tensors.values()
    if misfits.errors and (strict or not applied):
        raise misfits.refusal(file, tables)
    used = {name: part for name, part in forms.items() if part.slots or part.norms}
    warnings = (*_warnings(used), *cost.warnings())
    taught = file.bundled if embeddings else ()
    report = Report((*applied, *taught), misfits.unused(), warnings)
    return Adapter(file.name, tuple(sorted(kinds)), used, file.metadata, report, file.path, embeddings)


def _bundled(file: "AdapterFile", misfits: Misfits) -> tuple[Embedding, ...]:
    """Embeddings that come with the file; all of them or none."""
    try:
        return bundled_embeddings(file.tensors, file.bundled, file.path) if file.bundled else ()
    except (AdapterValueError, AdapterFileDamaged):
        raise
    except AdapterError as error:
        for name in file.bundled:
            misfits.add(name, [name], error)
        return ()


def _named(error: AdapterValueError, file: "AdapterFile", part: Part) -> AdapterValueError:
    """The error with the file and the layer in it, which a kind does not know."""
    known = str(error).startswith(str(file.path))
    return error if known else AdapterValueError(f"{file.path}: {part.modules[0]!r} {error}")


def _update(file: "AdapterFile", part: Part, base: BaseWeights | None) -> Update:
    component, path = part.place.component, part.place.path
    config = file.configs.get(component, file.configs.get(""))
    module = _own_path(part.modules[0], component)
    if config:
        config.check(part.tensors)
    from_base = base if part.slot else None
    return Update(
        name=part.modules[0],
        shape=part.shape,
        tensors={leaf: file.read(tensor) for leaf, tensor in part.tensors.items()},
        config_scale=_config_scale(config, module),
        feedforward=config.is_feedforward(module) if config else None,
        has_bias=part.slot is None or part.slot.has_bias,
        base_weight=partial(from_base.weight, component, path) if from_base else None,
        base_bias=partial(from_base.bias, component, path) if from_base else None,
    )


def _own_path(module: str, component: str) -> str:
    """The settings name a module by its path in the model, without PEFT's wrapper and the component."""
    return module.removeprefix(WRAPPER).removeprefix(f"{component}.")


def _config_scale(config: PeftConfig | None, module: str) -> Callable[[int | None], float] | None:
    return partial(config.scale, module) if config else None


def _warnings(used: Mapping[str, ComponentForms]) -> Iterator[str]:
    off = [
        f"{path} of {component}"
        for component, part in used.items()
        for path, forms in part.slots.items()
        if all(isinstance(form, LowRank) and form.scale == 0 for form in forms)
    ]
    if off:
        yield f"alpha is 0 in {len(off)} modules, which therefore have no effect (first: {off[0]})"
