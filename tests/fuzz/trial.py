"""One hostile file, read: how it ended, what it took, and whether that keeps the promise.

The promise: a file is refused by a `LoraEdgeError`, or loads with finite numbers and a report that counts every tensor
once. The most memory that is held at any moment of it is at most

    2 x max(bytes of the file, bytes that `AdapterFile.cost` tells) + CONSTANT + PER_NAME x names + PER_JSON x settings,

where names are the tensors and strings in the header, and settings the bytes of JSON about PEFT or a pack; and PER_WIDE
for each byte of a header beyond ASCII, which is refused from 10 MB on. It takes at
most MS_PER_MB of the processor for each MB of that maximum, and FIXED_MS, and MS_PER_NAME for each name. Memory is what
Python and numpy allocate (tracemalloc); a file that is mapped lies in the system's page cache and is not counted.
"""

import time
import tracemalloc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.errors import LoraEdgeError
from lora_edge.forms import Gain, LowRank
from lora_edge.packhead import KEY as PACK_KEY
from lora_edge.peftconfig import METADATA_KEY
from lora_edge.slots import SlotTable
from lora_edge.tensorfile import TensorFile, read_header
from lora_edge.tensorheader import MAX_TENSORS

from .mutations import mutate
from .seeds import Seed

LOADED = "loaded"
CONSTANT = 512 << 10  # buffers of open files, a message, a regular expression of 200 brackets, some frames
PER_NAME = 3 << 10  # its text, its entry, its module, its leaf, why it has no effect: about ten objects of Python
PER_JSON = 24  # an empty list takes 64 bytes and a place in its list, and is written in 3
PER_WIDE = 8  # the text and one string of it, 4 bytes a character
FIXED_MS = 30.0  # opening two or three files, on a machine that does other things in between
MS_PER_NAME = 0.1
MS_PER_MB = 50.0


@dataclass(frozen=True)
class Outcome:
    """How one file ended; times are in ms, everything else but the result in bytes.

    Attributes:
        result: "loaded", or the name of the error's class.
        fault: what breaks the promise, "" for nothing.
        size: bytes of the file, and of the settings beside it.
        told: bytes of memory that its header tells; 0 where it was not asked for, as the rest was little enough.
        names, settings, wide: tensors and strings in the header, bytes of JSON, bytes beyond ASCII; likewise.
        peak: bytes held at most while it was read, 0 where that was not measured.
        ms: that reading took, 0 where that was not measured.
    """

    result: str
    fault: str
    size: int
    told: int = 0
    names: int = 0
    settings: int = 0
    wide: int = 0
    peak: int = 0
    ms: float = 0.0

    @property
    def memory(self) -> float:
        """What was held at most, as a part of what the promise allows."""
        constant = CONSTANT + PER_NAME * self.names + PER_JSON * self.settings + PER_WIDE * self.wide
        return self.peak / (2 * max(self.size, self.told) + constant)

    @property
    def time(self) -> float:
        """What reading took, as a part of what the promise allows."""
        constant = FIXED_MS + MS_PER_NAME * self.names
        return self.ms / (MS_PER_MB * max(self.size, self.told) / 1e6 + constant)


def trial(seed: Seed, mutation: str, number: int, bundle: Bundle, folder: Path, timed: bool = False) -> Outcome:
    """Make one hostile file in the folder and read it; timed: measure time instead of memory."""
    rng = Random(f"{mutation} {number}")
    blob, settings = mutate(mutation, rng, seed)
    return outcome(seed, write(seed, blob, settings, folder), len(blob) + len(settings or b""), bundle, number, timed)


def write(seed: Seed, blob: bytes, settings: bytes | None, folder: Path) -> Path:
    """The file, or the folder of a file and its settings."""
    suffix = ".onnx_adapter" if seed.form == "ort" else ".safetensors"
    path = folder / "hostile"
    if seed.form != "folder":
        path.with_suffix(suffix).write_bytes(blob)
        return path.with_suffix(suffix)
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(blob)
    (path / "adapter_config.json").write_bytes(settings or b"")
    return path


def outcome(seed: Seed, path: Path, size: int, bundle: Bundle, number: int = 0, timed: bool = False) -> Outcome:
    """Read a file; every second one leniently."""
    strict = number % 2 == 0
    if not timed:
        tracemalloc.start()
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = seed.load(path, bundle, strict)
        result, fault = LOADED, ""
    except LoraEdgeError as error:
        loaded, result, fault = None, type(error).__name__, _speechless(error)
    except Exception as error:
        loaded, result, fault = None, type(error).__name__, f"{type(error).__name__}: {error}"
    ms = 1e3 * (time.process_time() - start) if timed else 0.0
    peak = tracemalloc.get_traced_memory()[1]  # 0 where nothing is traced
    tracemalloc.stop()
    if loaded is not None:
        fault = _broken(loaded, path, seed.form)
    made = Outcome(result, fault, size, peak=peak, ms=ms)
    return made if within(made) else _with_constants(made, path, seed.tables)


def within(outcome: Outcome) -> bool:
    return max(outcome.memory, outcome.time) <= 1


def _with_constants(made: Outcome, path: Path, tables: Sequence[SlotTable]) -> Outcome:
    """The outcome with what else the promise allows, which is only looked up where it matters."""
    weights = path / "adapter_model.safetensors" if path.is_dir() else path
    names, settings, told, wide = _named(weights), made.size - weights.stat().st_size, 0, 0
    with suppress(LoraEdgeError):
        header = read_header(weights)
        names += len(header.metadata)
        wide = 0 if weights.read_bytes()[8 : header.data_start].isascii() else header.data_start
        settings += sum(len(header.metadata.get(key, "")) for key in (METADATA_KEY, PACK_KEY))
    with suppress(LoraEdgeError):
        told = read_adapter(path).cost(tables).nbytes
    made = replace(made, told=told, names=names, settings=settings, wide=wide)
    if within(made) or made.fault:
        return made
    fault = f"took {made.peak} bytes and {made.ms:.0f} ms, {made.memory:.0%} and {made.time:.0%} of what is promised"
    return replace(made, fault=fault)


def _named(path: Path) -> int:
    """About how many tensors a header names, read or not."""
    return min(path.read_bytes().count(b"data_offsets"), MAX_TENSORS)


def _speechless(error: LoraEdgeError) -> str:
    text = str(error)
    return "" if 20 < len(text) < 20_000 else f"a message of {len(text)} characters"


def _broken(loaded: object, path: Path, form: str) -> str:
    """What is wrong with something that loaded, "" for nothing."""
    for array in _arrays(loaded):
        if not np.isfinite(array).all():
            return "loaded with numbers that are not finite"
    if not isinstance(loaded, Adapter) or form == "ort":
        return ""
    names = TensorFile.open(path / "adapter_model.safetensors" if path.is_dir() else path).names
    counted = sorted([*loaded.report.applied, *loaded.report.unused])
    return "" if counted == sorted(names) else f"counts {len(counted)} tensors of {len(names)}"


def _arrays(loaded: object) -> Iterator[Array]:
    words = loaded.embeddings if isinstance(loaded, Adapter) else loaded
    assert isinstance(words, tuple)
    for word in words:
        yield from word.vectors.values()
    for part in loaded.components.values() if isinstance(loaded, Adapter) else ():
        for form in (form for forms in part.slots.values() for form in forms):
            if isinstance(form, LowRank):
                yield from (form.down, form.up, np.array(form.scale, np.float32))
            else:
                yield form.values if isinstance(form, Gain) else form.delta
        for norm in part.norms.values():
            yield from (array for array in (norm.weight, norm.bias) if array is not None)
