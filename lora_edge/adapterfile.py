"""Adapter files: reading and inspecting one without a bundle, and fitting it to one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.arrays import FloatArray
from lora_edge.basemodel import guess
from lora_edge.baseweights import BaseWeights
from lora_edge.cost import Cost
from lora_edge.errors import AdapterError, AdapterMismatch, AdapterNotFound, AdapterValueError, UnknownKind
from lora_edge.fitting import fit
from lora_edge.kinds import Kind, claim, is_adapter_leaf, split
from lora_edge.peftconfig import PeftConfig, read_folder_config, read_header_configs
from lora_edge.planning import plan
from lora_edge.slots import SlotTable
from lora_edge.tensorfile import TensorFile

FOLDER_WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # of PEFT, of diffusers
FOLDER_PICKLES = ("adapter_model.bin", "pytorch_lora_weights.bin")
INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})
BUNDLED = "bundle_emb."  # begins the names of embeddings that come with a file


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, opened; its tensors are read when they are fitted to a bundle.

    Attributes:
        name: what a prompt calls it: the file's stem, or the name of its folder.
        path: the file or folder that was given.
        tensors: the open file.
        modules: module name -> leaf -> tensor name.
        configs: component -> settings of a PEFT adapter; "" where they hold for whichever component it is.
        bundled: tensors of embeddings that come with the file, which belong to no module.
    """

    name: str
    path: Path
    tensors: TensorFile
    modules: Mapping[str, Mapping[str, str]] = field(repr=False)
    configs: Mapping[str, PeftConfig] = field(default_factory=dict, repr=False)
    bundled: tuple[str, ...] = ()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's own strings."""
        return self.tensors.metadata

    def read(self, tensor: str) -> FloatArray:
        """A copy of one tensor, float32 (indices of sparse tensors too: no layer has 2^24 channels).

        Raises:
            AdapterValueError: it holds a NaN or an infinity, or a float64 beyond float32.
        """
        whole = self.tensors.dtype(tensor) in INTEGERS  # as int64 they might be eight times their size in the file
        array = self.tensors.view(tensor).astype(np.float32) if whole else self.tensors.read(tensor)
        if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            raise AdapterValueError(f"{self.path} holds numbers that are not finite in {tensor!r}; the file is broken")
        return array

    def cost(self, tables: Sequence[SlotTable], component: str | None = None) -> Cost:
        """What the adapter will take in memory, from its header alone; what does not fit is not counted.

        Raises:
            ComponentMissing: the tables have no such component.
        """
        return plan(self, tables, component).cost()

    def fit(
        self,
        tables: Sequence[SlotTable],
        component: str | None = None,
        strict: bool = True,
        base: BaseWeights | None = None,
        max_bytes: int | None = None,
    ) -> Adapter:
        """The adapter as the slots of a bundle take it.

        Args:
            tables: the slots of every component that takes adapters.
            component: the only component to change. Needed where the names of the file do not say it and fit
                several; None takes whichever they fit.
            strict: refuse the file if any of its tensors would go unused; otherwise leave those out and report them.
            base: the base's own weights, such as a bundle, for kinds that are computed from them.
            max_bytes: the most that the adapter may take in memory, see `cost`; None for no limit.

        Raises:
            AdapterMismatch: tensors that fit no slot, or have another shape; one error for all of them.
            UnknownKind, AmbiguousKind, BaseNeeded: the same, where that is the only reason.
            AdapterTooLarge: more than max_bytes, refused before any tensor is read.
            AdapterValueError: numbers that are not finite, whether strict or not.
            AdapterFileDamaged: the file was cut since it was opened.
            ComponentMissing: the tables have no such component.
        """
        return fit(self, tables, component, strict, base, max_bytes)

    def kind_of(self, module: str) -> Kind | None:
        """The kind of one module, None where no kind reads it."""
        try:
            return claim(self.modules[module].keys(), shapes=self.shapes(module))
        except AdapterError:
            return None

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """Shapes of one module's tensors by leaf."""
        return {leaf: self.tensors.shape(tensor) for leaf, tensor in self.modules[module].items()}

    def summary(self) -> dict[str, Any]:
        """What a person wants to know of the file, ready for JSON."""
        kinds = {module: self.kind_of(module) for module in self.modules}
        ranks = {kind.rank(self.shapes(module)) for module, kind in kinds.items() if kind}
        names = self.tensors.names
        return {
            "name": self.name,
            "path": str(self.path),
            "kinds": sorted({kind.name for kind in kinds.values() if kind}),
            "modules": len(self.modules),
            "unread_modules": [module for module, kind in kinds.items() if kind is None],
            "tensors": len(names),
            "ranks": sorted(rank for rank in ranks if rank is not None),
            "dtypes": sorted({self.tensors.dtype(name) for name in names}),
            "bytes": sum(self.tensors.nbytes(name) for name in names),
            "base": str(guess(self.tensors)),
            "metadata": dict(self.metadata),
        }


def read_adapter(path: str | Path) -> AdapterFile:
    """Open an adapter file, a PEFT folder or a folder that diffusers saved; no torch and no bundle is needed.

    Raises:
        AdapterNotFound: nothing is there, or a folder without adapter weights.
        AdapterFileDamaged: not a readable safetensors file or config.
        AdapterMismatch: a tensor is given twice.
        UnknownKind: no tensor of an adapter is in it, or PEFT settings that lora-edge does not read.
    """
    path = Path(path)
    weights = _weights(path)
    tensors = TensorFile.open(weights)
    bundled = tuple(name for name in tensors.names if name.startswith(BUNDLED))
    modules = _grouped(tensors, frozenset(bundled))
    configs = read_header_configs(tensors.metadata, weights)
    if path.is_dir() and (config := read_folder_config(path)):
        configs = {"": config}
    name = path.resolve().name if path.is_dir() else path.stem
    return AdapterFile(name, path, tensors, modules, configs, bundled)


def folder_weights(folder: Path) -> Path | None:
    """The weights of a folder that is one adapter, None where it is not."""
    return next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)


def version(path: Path) -> tuple[Path, int, int]:
    """The weights file behind an adapter, its time of last change in ns and its size; nothing is read for it.

    Raises:
        AdapterNotFound: nothing is there.
    """
    weights = (folder_weights(path) or path) if path.is_dir() else path
    try:
        stat = weights.stat()
    except OSError as reason:
        raise AdapterNotFound(f"{weights} does not exist or cannot be read") from reason
    return weights, stat.st_mtime_ns, stat.st_size


def _weights(path: Path) -> Path:
    if not path.exists():
        raise AdapterNotFound(f"{path} does not exist")
    if not path.is_dir():
        return path
    if weights := folder_weights(path):
        return weights
    pickle = next((path / name for name in FOLDER_PICKLES if (path / name).is_file()), None)
    if pickle:
        return pickle  # refused when it is opened, in a sentence of its own
    raise AdapterNotFound(f"{path} is a folder without {' or '.join(FOLDER_WEIGHTS)}")


def _grouped(tensors: TensorFile, aside: frozenset[str]) -> dict[str, dict[str, str]]:
    modules: dict[str, dict[str, str]] = {}
    for name in tensors.names:
        if name in aside:
            continue
        module, leaf = split(name)
        if leaf in modules.setdefault(module, {}):
            raise AdapterMismatch(f"{tensors.path} gives the same tensor twice: {modules[module][leaf]!r} and {name!r}")
        modules[module][leaf] = name
    if not modules:
        raise UnknownKind(f"{tensors.path} holds no tensors")
    leaves = {leaf for module in modules.values() for leaf in module}
    if not any(map(is_adapter_leaf, leaves)):
        first = ", ".join(map(repr, tensors.names[:3]))
        raise UnknownKind(f"{tensors.path} holds no adapter but {first} and so on; is it a whole model?")
    return modules
