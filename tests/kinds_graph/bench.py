"""An adapter file made of an example, and what weights it stands for: both from the same stored numbers."""

import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lora_edge.adapter import Adapter
from lora_edge.runtime.engine import Engine

from .example import Array, Example
from .naming import NORMS, SLOTS, Layers, Naming
from .twin import Outputs, Twin, twins, worst

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Stored = dict[str, torch.Tensor]  # leaf -> as the file has it
Changes = dict[str, dict[str, Array]]  # component -> parameter -> its change at multiplier 1, float64


class Bench:
    """The engine and the torch models, and what examples make of them.

    Args:
        model: folder of the torch models.
        bundle: their bundle.
        folder: where files are written.
    """

    def __init__(self, model: Path, bundle: Path, folder: Path) -> None:
        self.twins: dict[str, Twin] = twins(model)
        self.engine = Engine.open(bundle, threads=1, adapter_bytes=1)
        self._bases: dict[str, dict[str, dict[str, Array]]] = {}
        self._folder = folder
        self._written = 0
        self.stored = cache(self._stored)
        self._references: dict[object, Outputs] = {}

    @property
    def base(self) -> dict[str, dict[str, Array]]:
        """What the graphs in use compute without adapters; those of another scope round differently."""
        scopes = str(self.engine.info["graphs"])
        if scopes not in self._bases:
            self._bases[scopes] = {name: self.run(name, ()) for name in self.twins}
        return self._bases[scopes]

    def run(self, component: str, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Array]:
        return self.engine.run(component, self.twins[component].inputs, adapters)

    def _stored(self, example: Example, component: str, path: str, dtype: str) -> Stored:
        """The tensors of one layer, rounded to the dtype of the file."""
        rng = np.random.default_rng(zlib.crc32(f"{example.name} {path}".encode()))
        made = example.make(self.twins[component].parameters[f"{path}.weight"], rng)
        tensors = {leaf: torch.from_numpy(np.ascontiguousarray(value)) for leaf, value in made.items()}
        return {leaf: t.to(DTYPES[dtype]) if t.is_floating_point() else t for leaf, t in tensors.items()}

    def layers(self, example: Example, naming: Naming) -> dict[str, tuple[str, ...]]:
        return naming.layers(NORMS if example.norms else SLOTS)

    def load(self, example: Example, naming: Naming, dtype: str) -> Adapter:
        """The example as a file, read back by the engine."""
        return self.load_parts([(example, naming, self.layers(example, naming))], dtype)

    def load_parts(self, parts: Sequence[tuple[Example, Naming, Layers]], dtype: str) -> Adapter:
        """Several examples in one file, each on layers of its own; every tensor of it must take effect."""
        tensors = {
            naming.key(component, path, leaf): tensor
            for example, naming, layers in parts
            for component, paths in layers.items()
            for path in paths
            for leaf, tensor in _named(self.stored(example, component, path, dtype), naming.alpha).items()
        }
        self._written += 1
        file = self._folder / f"{self._written}.safetensors"
        metadata = {key: value for example, _, _ in parts for key, value in example.metadata.items()}
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, file, metadata=metadata)
        adapter = self.engine.load_adapter(file)
        file.unlink()
        assert set(adapter.report.applied) == set(tensors) and not adapter.report.unused
        return adapter

    def changes(self, example: Example, naming: Naming, dtype: str, layers: Layers | None = None) -> Changes:
        """What the same tensors add to each parameter at multiplier 1."""
        made: Changes = {}
        for component, paths in (layers or self.layers(example, naming)).items():
            parameters = self.twins[component].parameters
            made[component] = {}
            for path in paths:
                stored = _named(self.stored(example, component, path, dtype), naming.alpha)
                tensors = {
                    leaf: (tensor.double() if tensor.is_floating_point() else tensor).numpy()
                    for leaf, tensor in stored.items()
                }
                for leaf, formula in (("weight", example.weight), ("bias", example.bias)):
                    own = parameters[f"{path}.{leaf}"]
                    made[component][f"{path}.{leaf}"] = formula(own, tensors) - own
        return made

    def merged(self, component: str, weighted: Sequence[tuple[Changes, float]]) -> Outputs:
        """What torch gives with W + sum of multiplier * (W'_1 - W)."""
        parameters = self.twins[component].parameters
        moved: dict[str, Array] = {}
        for changes, multiplier in weighted:
            for name, change in changes.get(component, {}).items():
                moved[name] = moved.get(name, parameters[name]) + multiplier * change
        return self.twins[component].run(moved)

    def reference(self, component: str, example: Example, naming: Naming, dtype: str, multiplier: float) -> Outputs:
        """The same for one example; namings that say the same share it."""
        key = (component, example.name, dtype, multiplier, naming.alpha, tuple(self.layers(example, naming)[component]))
        if key not in self._references:
            self._references[key] = self.merged(component, [(self.changes(example, naming, dtype), multiplier)])
        return self._references[key]

    def ratio(self, component: str, adapters: Sequence[tuple[Adapter, float]], wanted: Outputs) -> float:
        """The error of the graph as a part of the change that the adapters make."""
        return worst(self.run(component, adapters), wanted, self.twins[component].base)


def _named(stored: Stored, alpha: bool) -> Stored:
    """Some namings have no alpha beside a LoRA, which then has scale 1."""
    return {leaf: t for leaf, t in stored.items() if alpha or leaf != "alpha" or "lora_down.weight" not in stored}
