"""The folder `coreml/` of a bundle, as its own manifest describes it: packages, their ports, and where slots lie."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.bundle import Bundle
from lora_edge.errors import BundleDamaged, ComponentMissing
from lora_edge.mil.check import MANIFEST, read_manifest
from lora_edge.slots import Slot, SlotTable

FOLDER = "coreml"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
}
MAX_RANK = 4096
AGAIN = "export it again with --target coreml"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of a package."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    optional: bool = False


@dataclass(frozen=True)
class Pair:
    """The inputs of one slot.

    Attributes:
        down, up: their names.
        down_shape: [in, R], or as a convolution's weight [R, in, kh, kw].
        up_shape: [R, out], or as a convolution's weight [out, R, 1, 1].
    """

    down: str
    up: str
    down_shape: Shape
    up_shape: Shape


@dataclass(frozen=True)
class Stage:
    """One package of a component.

    Attributes:
        path: the `.mlpackage` folder.
        inputs, outputs: by name.
    """

    path: Path
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]


@dataclass(frozen=True)
class Packaged:
    """A component as packages.

    Attributes:
        stages: run one after the other; each may read every input and what the stages before it gave.
        slots: slot name -> its inputs; the slots that take adapters here.
        scale: the input with one multiplier per lane [R]; None where no slot takes adapters.
    """

    stages: tuple[Stage, ...]
    slots: Mapping[str, Pair]
    scale: str | None

    @property
    def inputs(self) -> dict[str, Port]:
        """What a caller gives."""
        made: dict[str, Port] = {}
        between: set[str] = set()
        for stage in self.stages:
            made |= {name: port for name, port in stage.inputs.items() if name not in between}
            between |= stage.outputs.keys()
        return made

    @property
    def adapter_inputs(self) -> dict[str, Port]:
        """Those of adapters alone."""
        names = {name for pair in self.slots.values() for name in (pair.down, pair.up)} | {self.scale}
        return {name: port for name, port in self.inputs.items() if name in names}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """What the last stage gives."""
        return self.stages[-1].outputs


@dataclass(frozen=True)
class Packages:
    """All packages of a bundle.

    Attributes:
        rank: lanes of every slot.
        precision: "fp16" or "fp32", of weights and sums.
        latent: (height, width) of the latents that UNet and VAE take, in latents.
        components: by name.
    """

    rank: int
    precision: str
    latent: tuple[int, int]
    components: Mapping[str, Packaged]

    @classmethod
    def open(cls, bundle: Bundle) -> "Packages":
        """Read the manifest and check it against the bundle; packages themselves are not opened.

        Raises:
            BundleNotFound: the bundle was exported without Core ML packages.
            BundleVersionError: they were written for another version.
            BundleDamaged: the manifest cannot be read, names files outside its folder or that are not there, fits
                another bundle, or contradicts itself.
        """
        folder = bundle.folder / FOLDER
        told = read_manifest(folder)
        if told.get("fingerprint") != bundle.fingerprint:
            raise BundleDamaged(f"{folder} was made for another bundle (its fingerprint differs); {AGAIN}")
        try:
            return _parse(folder, told, {table.component: table for table in bundle.tables})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BundleDamaged(f"{folder / MANIFEST} lacks or misspells an entry: {error!r}; {AGAIN}") from error

    def component(self, name: str) -> Packaged:
        """A component by name; a text encoder without adapter inputs stands in for one that has them.

        Raises:
            ComponentMissing: there is none.
        """
        for known in (name, f"{name}_plain"):
            if known in self.components:
                return self.components[known]
        raise ComponentMissing(f"the Core ML packages have no {name}; they have {', '.join(self.components)}")


def _parse(folder: Path, told: Mapping[str, Any], tables: Mapping[str, SlotTable]) -> Packages:
    rank = int(told["rank"])
    height, width = map(int, told["latent"])
    if not 1 <= rank <= MAX_RANK or height < 1 or width < 1:
        raise ValueError(f"rank {rank}, latent {height} x {width}")
    made = {name: _packaged(folder, entry) for name, entry in told["components"].items()}
    for name, packaged in made.items():
        for fault in _faults(packaged, tables.get(name), rank):
            raise BundleDamaged(f"{folder / MANIFEST}: {name} {fault}; {AGAIN}")
    return Packages(rank, str(told["precision"]), (height, width), made)


def _packaged(folder: Path, entry: Mapping[str, Any]) -> Packaged:
    stages = tuple(_stage(folder, name, entry["ports"][name]) for name in entry["packages"])
    if not stages:
        raise ValueError("a component without packages")
    slots = {name: _pair(pair) for name, pair in (entry.get("slots") or {}).items()}
    return Packaged(stages, slots, entry.get("scale"))


def _stage(folder: Path, name: str, ports: Mapping[str, Any]) -> Stage:
    path = folder / name
    if Path(name).name != name or path.resolve().parent != folder.resolve():
        raise BundleDamaged(f"{folder / MANIFEST} names the package {name!r}, which lies outside the folder; {AGAIN}")
    if not path.is_dir():
        raise BundleDamaged(f"{folder} lacks {name}; copy the bundle again or export it anew")
    return Stage(path, *({port.name: port for port in map(_port, ports[word])} for word in ("inputs", "outputs")))


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(str(entry["name"]), _shape(entry["shape"]), DTYPES[entry["dtype"]], bool(entry.get("optional", False)))


def _pair(entry: Mapping[str, Any]) -> Pair:
    return Pair(str(entry["down"]), str(entry["up"]), _shape(entry["down_shape"]), _shape(entry["up_shape"]))


def _shape(sizes: Any) -> Shape:
    shape = tuple(int(size) for size in sizes)
    if any(size < 1 for size in shape):
        raise ValueError(f"the shape {list(shape)}")
    return shape


def _faults(packaged: Packaged, table: SlotTable | None, rank: int) -> Iterator[str]:
    """What contradicts the bundle's slots or the ports."""
    ports = packaged.inputs
    for name, pair in packaged.slots.items():
        slot = table.by_name.get(name) if table else None
        if slot is None:
            yield f"has a slot {name!r:.100}, which the bundle has not"
            return
        if pair.down_shape not in down_shapes(slot, rank) or pair.up_shape not in up_shapes(slot, rank):
            yield f"gives {name} the shapes {list(pair.down_shape)} and {list(pair.up_shape)}, which do not fit it"
        for port, shape in ((pair.down, pair.down_shape), (pair.up, pair.up_shape)):
            if port not in ports or ports[port].shape != shape or not ports[port].optional:
                yield f"has no optional input {port!r:.100} of shape {list(shape)}"
    if packaged.slots and (packaged.scale not in ports or ports[str(packaged.scale)].shape != (rank,)):
        yield f"has no input {packaged.scale!r:.100} of shape [{rank}]"


def down_shapes(slot: Slot, rank: int) -> tuple[Shape, Shape]:
    """How `down` may lie: as a matrix, or as a convolution's weight."""
    return (slot.patch, rank), (rank, slot.in_features, *(slot.kernel or (1, 1)))


def up_shapes(slot: Slot, rank: int) -> tuple[Shape, Shape]:
    """How `up` may lie."""
    return (rank, slot.out_features), (slot.out_features, rank, 1, 1)
