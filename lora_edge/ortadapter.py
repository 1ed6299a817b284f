"""Adapters in ONNX Runtime's own form: one `.onnx_adapter` per component, which any host of ONNX Runtime can use on
the bundle's graph without code of ours (LoraAdapter, RunOptions.add_active_adapter).

It holds everything that the graph is fed at multiplier 1, `lora.scales` and `lora.ranks` too, all float32 but the
ranks. Its model_version is made of the bundle's fingerprint, its adapter_version is the graph contract's.
"""

import zlib
from pathlib import Path

import numpy as np

from lora_edge.adapter import Adapter, Report
from lora_edge.arrays import Array, FloatArray
from lora_edge.bundle import READABLE_ABIS, Bundle
from lora_edge.errors import AdapterMismatch, AdapterValueError, PackMismatch
from lora_edge.ortfile import OrtFile
from lora_edge.pack import AGAIN, chosen_parts
from lora_edge.ports import Ports, feeds_of, forms_of, inputs, refuse_beyond, runs_of, short
from lora_edge.slots import RANKS, SCALES, SlotTable

SUFFIX = ".onnx_adapter"
MAX_BYTES = 2**31 - 2**24  # of one file: FlatBuffers reach no further, and the names take some


def model_version(bundle: Bundle) -> int:
    """The CRC-32 of the fingerprint's text without the sign bit, for a field of 31 bits."""
    return zlib.crc32(bundle.fingerprint.encode()) & 0x7FFFFFFF


def parameters(adapter: Adapter, bundle: Bundle) -> dict[str, dict[str, Array]]:
    """Component -> what its file holds: graph input -> float32 array, `lora.ranks` int64.

    Raises:
        AdapterMismatch: the adapter was fitted to another bundle, or has what this form cannot hold.
        AdapterValueError: numbers that are not finite.
    """
    if adapter.embeddings:
        words = ", ".join(embedding.name for embedding in adapter.embeddings)
        raise AdapterMismatch(f"{adapter.name} teaches words ({words}), which .onnx_adapter files have no place for")
    made = {name: feeds_of(bundle, name, forms) for name, forms in sorted(adapter.components.items())}
    for name, fed in made.items():
        if (size := sum(array.nbytes for array in fed.values())) > MAX_BYTES:
            raise AdapterMismatch(f"{adapter.name} takes {size} bytes for {name}, and an .onnx_adapter holds 2 GB")
    return made


def read_onnx_adapter(
    path: str | Path,
    bundle: Bundle,
    component: str | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
) -> Adapter:
    """Read a `.onnx_adapter` for the bundle that it was written for; it is called as its file without the component.

    Args:
        path: of the file.
        bundle: must be the one that its model_version is of.
        component: what it changes, needed where several have its layers; None finds out.
        strict: has no effect, as a file changes one component.
        max_bytes: the most that it may take in memory; None for no limit.

    Raises:
        PackMismatch: written for another bundle or graph contract.
        AdapterFileDamaged: not a readable file.
        AdapterMismatch: a parameter that no component has an input for, or of another shape or type.
        AdapterValueError: numbers that are not finite.
        AdapterTooLarge: more than max_bytes, refused before any tensor is read.
        ComponentMissing: the bundle has no such component.
    """
    file = OrtFile(path)
    if file.adapter_version not in READABLE_ABIS:
        known = ", ".join(map(str, READABLE_ABIS))
        raise PackMismatch(f"{path} was packed with abi {file.adapter_version}; this version reads {known}: {AGAIN}")
    if file.model_version != model_version(bundle):
        raise PackMismatch(
            f"{path} was packed for another bundle: for model version {file.model_version}, where {bundle.name!r} has "
            f"{model_version(bundle)}; {AGAIN}"
        )
    try:
        found = {table.component: table for table in bundle.tables if _is_of(file, table)}
        if not found:
            raise AdapterMismatch(f"holds what no component has inputs for, such as {_strange(file, bundle)}; {AGAIN}")
        chosen, *others = chosen_parts(found, bundle, component, strict=False)
        if others:
            raise AdapterMismatch(f"may be for {' or '.join((chosen, *others))}; say which with component=")
        ports = _ports(file, bundle.component(chosen).table)
        refuse_beyond(max_bytes, [ports], path)
        forms = forms_of(bundle, chosen, ports)
    except AdapterMismatch as error:
        raise AdapterMismatch(f"{path} {error}") from None
    name = Path(path).name.removesuffix(SUFFIX).removesuffix(f".{chosen}")
    return Adapter(name, (), {chosen: forms}, {}, Report(tuple(file.parameters)))


def _is_of(file: OrtFile, table: SlotTable) -> bool:
    """Whether the file may be of a component: it has the ranks of all its slots, and nothing that is not its."""
    ranks = file.parameters.get(RANKS)
    return ranks is not None and ranks.shape == (len(table),) and file.parameters.keys() <= _inputs(table)


def _inputs(table: SlotTable) -> set[str]:
    return {*inputs(table), RANKS, SCALES}


def _strange(file: OrtFile, bundle: Bundle) -> str:
    """A parameter that the component with the most in common has no input for, else the ranks."""
    strange = sorted((sorted(file.parameters.keys() - _inputs(table)) for table in bundle.tables), key=len)
    return short(next((names[0] for names in strange[:1] if names), RANKS))


def _ports(file: OrtFile, table: SlotTable) -> Ports:
    for name, held in file.parameters.items():
        wanted = np.int64 if name == RANKS else np.float32
        if held.dtype != wanted:
            raise AdapterMismatch(f"holds {short(name)} in {held.dtype} where {np.dtype(wanted)} is needed")

    def read(name: str) -> FloatArray:
        array = file.read(name)
        if not np.isfinite(array).all():
            raise AdapterValueError(f"{file.path} holds numbers that are not finite in {name!r}; {AGAIN}")
        return array

    ranks = file.read(RANKS)
    scales = file.parameters.get(SCALES)
    total = sum(map(int, ranks))
    if scales is None or scales.shape != (1, total) or min(ranks, default=0) < 0:
        raise AdapterMismatch(f"needs {SCALES} of shape [1, {total}], one number per lane that {RANKS} counts")
    shapes = {name: held.shape for name, held in file.parameters.items() if name not in (RANKS, SCALES)}
    return Ports(shapes, read, runs_of(table, read(SCALES)[0], ranks))
