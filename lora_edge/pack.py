"""Packs: an adapter written for one bundle, a safetensors file whose tensors are the inputs of its graphs.

docs/packs.md is the format, for those who read it in another language. No name is spelled, no kind claimed and nothing
computed any more: reading a pack is checking it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.adapter import Adapter, Report
from lora_edge.arrays import FloatArray
from lora_edge.bundle import READABLE_ABIS, Bundle
from lora_edge.embedding import Embedding
from lora_edge.errors import (
    AdapterFileDamaged,
    AdapterMismatch,
    AdapterValueError,
    ComponentMissing,
    PackMismatch,
    RequestError,
    UnknownKind,
)
from lora_edge.packhead import FORMAT, KEY, READABLE_FORMATS, Head, Part, Source, utf8
from lora_edge.packquick import read_quick
from lora_edge.ports import Ports, forms_of, has_lanes, inputs, ports_of, refuse_beyond, short
from lora_edge.slots import ABI_VERSION, SlotTable
from lora_edge.tensorfile import TensorFile
from lora_edge.tools.write import Tensor, check_file, floats, write_tensors

SUFFIX = ".pack.safetensors"
DTYPES = ("fp16", "fp32")  # of down and up
TOKENS = "tokens."
FLOAT16 = (2.0**-14, 65504.0)  # its normal numbers: below them digits are lost, above them is infinity
AGAIN = "pack the original again with `lora-edge pack`"


def is_pack(metadata: Mapping[str, str]) -> bool:
    """Whether the header strings of a safetensors file are those of a pack."""
    return KEY in metadata


def prefixes(tables: Sequence[SlotTable]) -> dict[str, str]:
    """Component -> what the names of its tensors begin with in a pack.

    That is nothing, or `<component>/` where an earlier component of the bundle has a layer of the same name; it
    depends on the bundle alone.
    """
    made: dict[str, str] = {}
    taken: set[str] = set()
    for table in tables:
        layers = table.by_name.keys() | table.norms.keys()
        made[table.component] = "" if layers.isdisjoint(taken) else f"{table.component}/"
        taken |= layers
    return made


def write_pack(adapter: Adapter, bundle: Bundle, path: str | Path, dtype: str = "fp16", force: bool = False) -> Path:
    """Write an adapter for a bundle; the same adapter gives the same bytes.

    Args:
        adapter: fitted to the bundle.
        bundle: the one that the pack will be used with.
        path: of the file; it appears when it is whole.
        dtype: "fp16" or "fp32", of `down` and `up`; everything else is float32.
        force: replace a file that is already there.

    Returns:
        The path.

    Raises:
        RequestError: another dtype, no such folder, or a file is already there.
        AdapterValueError: a number that is not finite, or factors that float16 cannot hold.
        AdapterMismatch, ComponentMissing: the adapter was fitted to another bundle.
    """
    if dtype not in DTYPES:
        raise RequestError(f"there is no dtype {dtype!r}; packs are written in {' or '.join(DTYPES)}")
    path = Path(path)
    check_file(path, force)
    marks = prefixes(bundle.tables)
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Part] = {}
    for component, forms in sorted(adapter.components.items()):
        ports = ports_of(bundle, component, forms)
        if not ports.shapes:
            continue
        for port in ports.shapes:
            array = ports.read(port)
            half = dtype == "fp16" and has_lanes(port)
            if half:
                _check_float16(port, array)
            tensors[marks[component] + port] = floats(array, "F16" if half else "F32", port)
        parts[component] = Part(marks[component], ports.runs)
    for embedding in adapter.embeddings:
        for component, vectors in embedding.vectors.items():
            name = f"{TOKENS}{component}.{utf8(embedding.name)}"
            _check_word(bundle, component, name, vectors.shape)
            tensors[name] = floats(vectors, "F32", name)
    source = Source(bundle.fingerprint, str(bundle.manifest.get("family")), bundle.name)
    head = Head(FORMAT, ABI_VERSION, source, adapter.name, adapter.kinds, dtype, parts)
    strings = {**adapter.metadata, KEY: head.dump()}
    write_tensors(path, tensors, {utf8(key): utf8(value) for key, value in sorted(strings.items())})
    return path


def read_pack(
    path: str | Path,
    bundle: Bundle,
    component: str | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
    in_place: bool = False,
) -> Adapter:
    """Read a pack for the bundle that it was written for; it is called as its file, up to `.pack`.

    Args:
        path: of the file.
        bundle: must have the pack's fingerprint.
        component: the only component to change; None takes all that the pack changes.
        strict: refuse a pack that changes other components too; otherwise leave those out and report it.
        max_bytes: the most that it may take in memory; None for no limit.
        in_place: use float32 where it lies in the file, if the pack holds lanes alone. It must stay as it is then, and
            its numbers are taken on trust.

    Raises:
        PackMismatch: written for another bundle, format or graph contract.
        AdapterFileDamaged: not a readable file, or its own description is broken.
        AdapterMismatch: a tensor that the bundle has no input for, or of another shape or type.
        AdapterValueError: numbers that are not finite.
        AdapterTooLarge: more than max_bytes, refused before any tensor is read.
        UnknownKind: the file is no pack.
        ComponentMissing: the bundle has no such component.
    """
    path = Path(path)
    if component is None and (quick := _quick(path, bundle, max_bytes, in_place)):
        return quick
    file = TensorFile.open(path)
    head = _head(file, bundle)
    try:
        held = _by_component(file, head, bundle)
        chosen = chosen_parts(head.parts, bundle, component, strict)
        ports = {name: _ports(file, head.parts[name], held[name]) for name in chosen}
        words = _word_tensors(file, bundle)
        refuse_beyond(max_bytes, (*ports.values(), words), path)
        parts = {name: forms_of(bundle, name, ports[name]) for name in chosen}
    except AdapterMismatch as error:
        raise AdapterMismatch(f"{path} {error}") from None
    unused = {
        tensor: f"belongs to {name} and not to {component}"
        for name in head.parts.keys() - parts.keys()
        for tensor in held[name].values()
    }
    applied = tuple(name for name in file.names if name not in unused)
    report = Report(applied, unused)
    return Adapter(_called(path), head.kinds, parts, _others(file.metadata), report, path, _embeddings(words))


def _quick(path: Path, bundle: Bundle, max_bytes: int | None, in_place: bool) -> Adapter | None:
    """A pack of this bundle that can be read in one go; None for all others."""
    tables = {table.component: table for table in bundle.tables}
    limit = math.inf if max_bytes is None else max_bytes
    quick = read_quick(path, tables, prefixes(bundle.tables), limit, in_place)
    if quick is None or quick.head.source.fingerprint != bundle.fingerprint:
        return None
    if quick.head.format not in READABLE_FORMATS or quick.head.abi not in READABLE_ABIS:
        return None
    report = Report(quick.names)
    return Adapter(_called(path), quick.head.kinds, quick.parts, _others(quick.metadata), report, path)


def _called(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).removesuffix(".safetensors")


def _others(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != KEY}


def chosen_parts(held: Mapping[str, Any], bundle: Bundle, component: str | None, strict: bool) -> tuple[str, ...]:
    """The components to change of those that a file changes.

    Raises:
        ComponentMissing: the bundle has no such component.
        AdapterMismatch: the file does not change it, or others too; the message goes on from the file's name.
    """
    takers = [table.component for table in bundle.tables]
    if component is not None and component not in takers:
        raise ComponentMissing(f"the bundle has no {component!r} that takes adapters; it has {', '.join(takers)}")
    chosen = tuple(name for name in held if component in (None, name))
    if len(chosen) < len(held) and (strict or not chosen):
        raise AdapterMismatch(
            f"changes {' and '.join(sorted(held))} and not {component} alone; load it without component="
        )
    return chosen


def _head(file: TensorFile, bundle: Bundle) -> Head:
    if not is_pack(file.metadata):
        raise UnknownKind(f"{file.path} is no pack; make one with `lora-edge pack`")
    try:
        about = json.loads(file.metadata[KEY])
        for word, readable in (("format", READABLE_FORMATS), ("abi", READABLE_ABIS)):
            if (found := about[word]) not in readable:
                known = ", ".join(map(str, readable))
                raise PackMismatch(
                    f"{file.path} was packed with {word} {short(found)}; this version reads {known}: {AGAIN}"
                )
        head = Head.parse(about)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        what = str(error)[:100] or type(error).__name__
        raise AdapterFileDamaged(f"{file.path} describes itself wrongly in {KEY}: {what}; {AGAIN}") from None
    own, made_for = bundle.fingerprint, head.source
    if made_for.fingerprint != own:
        raise PackMismatch(
            f"{file.path} was packed for another bundle: for {short(made_for.name)} with the fingerprint "
            f"{short(made_for.fingerprint[:12])}, where {bundle.name!r} has {own[:12]!r}; {AGAIN}"
        )
    return head


def _by_component(file: TensorFile, head: Head, bundle: Bundle) -> dict[str, dict[str, str]]:
    """Component -> graph input -> tensor, of all but words."""
    tables = {table.component: table for table in bundle.tables}
    marks = prefixes(bundle.tables)
    places: dict[str, tuple[str, str]] = {}
    for component, part in head.parts.items():
        if component not in tables or part.prefix != marks[component]:
            raise AdapterMismatch(f"describes a component {short(component)}, which the bundle has not; {AGAIN}")
        order = [slot.name for slot in tables[component] if slot.name in part.runs]
        if list(part.runs) != order and part.runs.keys() <= tables[component].by_name.keys():
            raise AdapterMismatch(f"lists the slots of {component} in another order than the bundle; {AGAIN}")
        places |= {part.prefix + port: (component, port) for port in inputs(tables[component])}
    held: dict[str, dict[str, str]] = {component: {} for component in head.parts}
    for name in file.names:
        if name in places:
            component, port = places[name]
            held[component][port] = name
        elif not name.startswith(TOKENS):
            raise AdapterMismatch(f"holds {short(name)}, which no component that it describes has an input for")
    return held


def _ports(file: TensorFile, part: Part, held: Mapping[str, str]) -> Ports:
    def read(port: str) -> FloatArray:
        return _finite(file, held[port])

    for port, tensor in held.items():
        _check_dtype(file, tensor, ("F16", "F32") if has_lanes(port) else ("F32",))
    return Ports({port: file.shape(tensor) for port, tensor in held.items()}, read, part.runs)


def _word_tensors(file: TensorFile, bundle: Bundle) -> Ports:
    """The tensors of words under their own names, checked."""
    names = [name for name in file.names if name.startswith(TOKENS)]
    for name in names:
        _check_word(bundle, name.removeprefix(TOKENS).partition(".")[0], name, file.shape(name))
        _check_dtype(file, name, ("F32",))
    return Ports({name: file.shape(name) for name in names}, partial(_finite, file), {})


def _embeddings(words: Ports) -> tuple[Embedding, ...]:
    made: dict[str, dict[str, FloatArray]] = {}
    for name in words.shapes:
        component, _, word = name.removeprefix(TOKENS).partition(".")
        made.setdefault(word, {})[component] = words.read(name)
    return tuple(Embedding(word, vectors) for word, vectors in made.items())


def _finite(file: TensorFile, tensor: str) -> FloatArray:
    array = file.read(tensor)
    if not np.isfinite(array).all():
        raise AdapterValueError(f"{file.path} holds numbers that are not finite in {tensor!r}; {AGAIN}")
    return array


def _check_dtype(file: TensorFile, tensor: str, wanted: tuple[str, ...]) -> None:
    if file.dtype(tensor) not in wanted:
        raise AdapterMismatch(f"holds {tensor!r} in {file.dtype(tensor)} where {' or '.join(wanted)} is needed")


def _check_word(bundle: Bundle, component: str, tensor: str, shape: tuple[int, ...]) -> None:
    width = bundle.components[component].config.get("hidden_size") if component in bundle.components else None
    if width is None or len(shape) != 2 or shape[0] < 1 or shape[1] != width or tensor.endswith("."):
        wanted = f"[n, {width}] is needed" if width else "the bundle has no text encoder of that name"
        raise AdapterMismatch(f"holds the word {short(tensor)} of shape {list(shape)} where {wanted}")


def _check_float16(port: str, array: FloatArray) -> None:
    largest, (least, most) = float(np.abs(array).max(initial=0.0)), FLOAT16
    if largest and not least <= largest <= most:
        raise AdapterValueError(
            f"float16 cannot hold {port!r}, whose largest number is {largest:.3g}; pack it with --dtype fp32"
        )
