"""A checkpoint in diffusers layout, opened without torch: its weights, and slot tables made of their shapes.

    unet/config.json           unet/diffusion_pytorch_model.safetensors
    text_encoder/config.json   text_encoder/model.safetensors

Weights may be sharded (`….safetensors.index.json`) and come in variants (`model.fp16.safetensors`); the first variant
in the order plain, fp16, others is the one that is read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.baseweights import BaseWeights
from lora_edge.errors import CheckpointError
from lora_edge.jsonfile import read_object
from lora_edge.slots import Slot, SlotTable
from lora_edge.tensorfile import TensorFile

SLOTTED = ("unet", "text_encoder", "text_encoder_2")

STEMS: Mapping[str, str] = {  # component -> what its weights are called
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
}

# The one kind of layer that has a 2-D weight and takes no update.
EMBEDDINGS = ("token_embedding", "position_embedding", "class_embedding")

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_TEXT = ("text_model.", "text_projection.")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Base(BaseWeights, Protocol):
    """What tools put adapters on: a bundle, or a checkpoint."""

    @property
    def tables(self) -> Sequence[SlotTable]:
        """Slot tables of the components that take updates."""
        ...


@dataclass(frozen=True)
class Weights:
    """One variant of a component's weights.

    Attributes:
        files: the file, or the shards of it.
        places: tensor name in the contract -> the file that has it and its name there.
    """

    files: tuple[TensorFile, ...]
    places: Mapping[str, tuple[TensorFile, str]] = field(repr=False)

    @classmethod
    def open(cls, paths: tuple[Path, ...], component: str) -> "Weights":
        files = tuple(TensorFile.open(path, CheckpointError) for path in paths)
        places = {canonical(component, name): (file, name) for file in files for name in file.names}
        if len(places) < sum(len(file.names) for file in files):
            raise CheckpointError(f"{paths[0]} and its other shards hold the same tensor twice")
        return cls(files, places)

    def shape(self, name: str) -> tuple[int, ...]:
        file, own = self.places[name]
        return file.shape(own)

    def dtype(self, name: str) -> str:
        """The dtype as the file spells it, such as "BF16"."""
        file, own = self.places[name]
        return file.dtype(own)

    def read(self, name: str) -> FloatArray:
        """A copy of a tensor, float32.

        Raises:
            CheckpointError: it is no tensor of floats, or has numbers that are not finite.
        """
        file, own = self.places[name]
        if file.dtype(own) not in _FLOATS:
            raise CheckpointError(f"{file.path} has {own} in {file.dtype(own)}; {', '.join(_FLOATS)} can be worked on")
        array = file.read(own)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{file.path} holds numbers that are not finite in {own}; the file is broken")
        return array


@dataclass(frozen=True)
class Checkpoint:
    """The components of a checkpoint that adapters change; `lora_edge.baseweights.BaseWeights` is met.

    Attributes:
        folder: where it is.
        configs: component -> its config.json.
        variants: component -> its weights, the ones that are read first.
        tables: the slots of each component, in the order of SLOTTED.
    """

    folder: Path
    configs: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, tuple[Weights, ...]]
    tables: tuple[SlotTable, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Read configs and headers; no weights yet.

        Raises:
            CheckpointError: no folder in diffusers layout, or a file of it that cannot be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give a model in diffusers layout (with model_index.json)")
        found = [component for component in SLOTTED if (folder / component / "config.json").is_file()]
        if not found:
            raise CheckpointError(f"{folder} is no model in diffusers layout: it has none of {', '.join(SLOTTED)}")
        configs = {component: read_object(folder / component / "config.json", CheckpointError) for component in found}
        variants = {component: open_variants(folder / component) for component in found}
        tables = tuple(_table(component, variants[component][0], configs[component]) for component in found)
        return cls(folder, configs, variants, tables)

    def weights(self, component: str) -> Weights:
        """The variant that is read."""
        return self.variants[component][0]

    def weight(self, component: str, slot: str) -> FloatArray:
        """A layer's own weight, float32: [out, in] or [out, in, kh, kw]. Raises as `Weights.read`."""
        return self.weights(component).read(f"{slot}.weight")

    def bias(self, component: str, slot: str) -> FloatArray | None:
        """A layer's own bias [out] float32, None where it has none. Raises as `Weights.read`."""
        name = f"{slot}.bias"
        return self.weights(component).read(name) if name in self.weights(component).places else None


def canonical(component: str, name: str) -> str:
    """The contract's name of a text encoder's tensor: transformers 5 dropped the level `text_model.`."""
    return name if not component.startswith("text") or name.startswith(_TEXT) else f"text_model.{name}"


def open_variants(folder: Path) -> tuple[Weights, ...]:
    """Every variant of the weights in a component's folder, the one to read first.

    Raises:
        CheckpointError: there is none, or one that cannot be read.
    """
    component = folder.name
    stem = STEMS[component]
    sharded = [_shards(index) for index in folder.glob(f"{stem}.safetensors.index*.json")]
    inner = {path for paths in sharded for path in paths}
    single = [path for path in folder.glob(f"{stem}[.-]*safetensors") if path not in inner]
    if lone := next(filter(_SHARD.search, map(str, single)), None):
        raise CheckpointError(f"{lone} is one shard of several, and no index beside it names it")
    every = sorted([*((path,) for path in single), *sharded], key=lambda paths: _order(paths[0].name))
    if not every:
        pickled = next(folder.glob("*.bin"), None)
        why = "; its weights are pickled, which is not opened: save it as safetensors first" if pickled else ""
        raise CheckpointError(f"{folder} has no {stem}.safetensors{why}")
    return tuple(Weights.open(paths, component) for paths in every)


def _order(name: str) -> tuple[int, str]:
    """Plain before fp16 before any other variant."""
    words = [word for word in name.split(".")[1:] if word not in {"safetensors", "index", "json"}]
    return ({(): 0, ("fp16",): 1}.get(tuple(word.split("-")[0] for word in words), 2), name)


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names: bare names of its own folder."""
    try:
        names = sorted(set(read_object(index, CheckpointError)["weight_map"].values()))
        paths = tuple(index.parent / name for name in names)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} has no weight_map of names") from error
    if not paths or any(path.parent != index.parent or path.name in {"", ".."} for path in paths):
        raise CheckpointError(f"{index} names files outside its own folder")
    if missing := next((path for path in paths if not path.is_file()), None):
        raise CheckpointError(f"{index} names {missing.name}, which is missing")
    return paths


def _table(component: str, weights: Weights, config: Mapping[str, Any]) -> SlotTable:
    """Slots and norms by the shapes of their weights."""
    slots, norms = [], {}
    for name in weights.places:
        path, _, leaf = name.rpartition(".")
        shape = weights.shape(name)
        if leaf != "weight" or path.endswith(EMBEDDINGS):
            continue
        if len(shape) == 1:
            norms[path] = shape[0]
        elif len(shape) in (2, 4):
            kernel = (shape[2], shape[3]) if len(shape) == 4 else None
            has_bias = f"{path}.bias" in weights.places
            slots.append(Slot(path, shape[1], shape[0], kernel, has_bias=has_bias))
    return SlotTable(component, tuple(slots), norms, _facts(component, config))


def _facts(component: str, config: Mapping[str, Any]) -> dict[str, int]:
    """What dialects need to know of a UNet; entries that differ by block are left out."""
    if component != "unet":
        return {}
    widths = config.get("block_out_channels")
    facts = {
        "levels": len(widths) if isinstance(widths, list) else None,
        "cross_attention_dim": config.get("cross_attention_dim"),
        "layers_per_block": config.get("layers_per_block"),
    }
    return {name: value for name, value in facts.items() if type(value) is int}


def prediction_type(folder: Path) -> str:
    """What the scheduler's config says the model predicts, `epsilon` where it says nothing."""
    config = read_object(folder / "scheduler" / "scheduler_config.json", CheckpointError, optional=True)
    return str(config.get("prediction_type", "epsilon"))
