"""An adapter -> the same with fewer lanes, under the names of its own file.

Names are not looked up: every module of the file is a slot of its own, of the shape that its factors have, so no base
is needed. What is no LoRA or LoCon needs one, and is merged with a rank instead (lora_edge/tools/merge.py).
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lora_edge.adapterfile import AdapterFile
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.slots import Slot, SlotTable
from lora_edge.tools.kohya import STALE, rank_metadata
from lora_edge.tools.report import Layer, Made, Over
from lora_edge.tools.svd import Budget, Truncated, single, truncate_lanes
from lora_edge.tools.write import WRITABLE, Tensor, check_file, floats, stored_dtype, write_tensors

FACTORS = {"down", "up", "mid"}
COPIED = {"scale", "diff_b", "w_norm", "b_norm"}  # no lanes to cut
PLAIN = FACTORS | COPIED | {"alpha"}


def resize(
    file: AdapterFile,
    out: str | Path,
    budget: Budget,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    over: Over = iter,
) -> Made:
    """Write a LoRA or LoCon (with Tucker's mid too) with fewer lanes, dtypes, names and scales as they were.

    A module with an alpha keeps alpha / rank; one without gets its scale, if it has one by a PEFT config, into its
    factors, and the config is left out.

    Args:
        file: the adapter.
        out: the safetensors file to write.
        budget: how many lanes; no module gets more than it has.
        dtype: fp16, bf16 or fp32 for the factors; None keeps those of the file.
        overwrite: replace a file.
        over: goes through the modules.

    Raises:
        AdapterMismatch: a module is of another kind, or its factors do not fit each other.
        AdapterError: as `AdapterFile.fit`.
        RequestError: an `out` that cannot be written.
    """
    out = Path(out)
    stored = stored_dtype(dtype) if dtype else None
    check_file(out, overwrite)
    odd = [module for module, leaves in file.modules.items() if not leaves.keys() <= PLAIN]
    if odd:
        kind = file.kind_of(odd[0])
        raise AdapterMismatch(
            f"{file.path}: {len(odd)} of {len(file.modules)} modules are no plain LoRA (first: {odd[0]!r}"
            f"{f', {kind.name}' if kind else ''}); give the base with --bundle or --base to make a LoRA of them"
        )
    factored = {module for module, leaves in file.modules.items() if FACTORS & leaves.keys()}
    fitted = file.fit(_tables(file, factored)).components.values()
    lowranks = {path: form for part in fitted for path, forms in part.slots.items()
                for form in forms if isinstance(form, LowRank)}  # fmt: skip
    replaced = {tensor for module in factored for leaf, tensor in file.modules[module].items() if leaf not in COPIED}
    tensors = {name: _copy(file, name) for name in file.tensors.names if name not in replaced}
    layers: list[Layer] = []
    for module in over(sorted(factored)):
        form = lowranks[module]
        found = truncate_lanes(form.down, form.up, _kernel(file.shapes(module)) or (), budget)
        tensors |= _cut(file, module, found, form, stored)
        layers.append(Layer(module, found.rank, found.kept * form.scale**2, found.total * form.scale**2))
    metadata = {key: value for key, value in file.metadata.items() if key not in STALE}
    scales = {form.scale for form in lowranks.values()}
    told = rank_metadata((layer.rank or 0 for layer in layers), scales.pop() if len(scales) == 1 else None)
    write_tensors(out, tensors, metadata | told)
    return Made(out, tuple(layers), len(file.modules) - len(factored))


def _tables(file: AdapterFile, factored: set[str]) -> list[SlotTable]:
    """The modules themselves as slots and norms, by the component whose PEFT settings they follow."""
    made: dict[str, tuple[list[Slot], dict[str, int]]] = {}
    for module in file.modules:
        shapes = file.shapes(module)
        component = next((name for name in file.configs if name and module.startswith(f"{name}.")), "unet")
        slots, norms = made.setdefault(component, ([], {}))
        if module in factored:
            down, up = (shapes.get(leaf, ()) for leaf in ("down", "up"))
            if len(down) < 2 or len(up) < 2:
                raise AdapterMismatch(f"{file.path}: {module!r} has no pair of down {list(down)} and up {list(up)}")
            slots.append(Slot(module, down[1], up[0], _kernel(shapes)))
        else:
            ((_, shape),) = list(shapes.items())[:1]
            norms[module] = math.prod(shape)
    return [SlotTable(component, tuple(slots), norms) for component, (slots, norms) in made.items()]


def _kernel(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(kh, kw) of a Conv, from Tucker's mid where there is one."""
    tail = shapes.get("mid", shapes["down"])[2:]
    return (tail[0], tail[1]) if len(tail) == 2 else None


def _copy(file: AdapterFile, name: str) -> Tensor:
    return Tensor(file.tensors.dtype(name), file.tensors.shape(name), partial(file.tensors.view, name))


def _cut(file: AdapterFile, module: str, found: Truncated, form: LowRank, stored: str | None) -> dict[str, Tensor]:
    """The tensors of a module with its new lanes."""
    names, shapes = file.modules[module], file.shapes(module)
    kernel = _kernel(shapes) or shapes["down"][2:]
    told = {"alpha", "scale"} & names.keys()
    up = found.up if told else single(found.up * np.float64(form.scale))
    made = {
        "down": found.down.T.reshape(found.rank, shapes["down"][1], *kernel),
        "up": up.T.reshape(shapes["up"][0], found.rank, *(1 for _ in shapes["up"][2:])),
    }
    tensors = {}
    for leaf, array in made.items():
        own = file.tensors.dtype(names[leaf])
        dtype = stored or (own if own in WRITABLE else "F16")
        tensors[names[leaf]] = floats(array, dtype, names[leaf])
    if "alpha" in names:
        alpha = file.read(names["alpha"]).astype(np.float64) / shapes["down"][0] * found.rank
        tensors[names["alpha"]] = floats(alpha, "F32", names["alpha"])
    return tensors
