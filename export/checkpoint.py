"""A source folder in diffusers layout: what it holds, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_edge.errors import CheckpointError, first_line
from lora_edge.export.recipes import RECIPES, Recipe
from lora_edge.export.stored import precision, widen_small
from lora_edge.jsonfile import read_object


@dataclass(frozen=True)
class Part:
    """A component that can be exported."""

    recipe: Recipe
    class_name: str
    folder: Path
    config: Mapping[str, Any]

    def load(self, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """The module, everything in it in one precision; None for that of the files.

        Raises:
            CheckpointError: its weights cannot be read.
        """
        try:
            return self.recipe.load(self.class_name, str(self.folder), dtype or precision(self.folder))
        except Exception as error:
            raise CheckpointError(f"the weights in {self.folder} cannot be loaded: {first_line(error)}") from error

    def load_stored(self) -> nn.Module:
        """The module in float32, but for the weights of Linear and Conv2d, which are as the checkpoint stores them.

        Raises:
            CheckpointError: its weights cannot be read.
        """
        module = self.load(None)
        if any(buffer.is_floating_point() for buffer in module.buffers()):
            return self.load()  # computed, not stored, and in half precision computed wrong
        widen_small(module)
        return module


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder.

    Attributes:
        folder: where it is.
        index: model_index.json, or {} where the folder has none.
        parts: the components found, in the order of RECIPES.
    """

    folder: Path
    index: Mapping[str, Any]
    parts: tuple[Part, ...]

    @classmethod
    def open(cls, source: str | Path) -> "Checkpoint":
        """Look at a folder without loading weights.

        Raises:
            CheckpointError: no folder, no component that can be exported, or another architecture than SD1.
        """
        folder = Path(source)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give a model in diffusers layout (with model_index.json)")
        index = read_object(folder / "model_index.json", CheckpointError, optional=True)
        parts = tuple(part for recipe in RECIPES if (part := _part(folder, index, recipe)) is not None)
        if not parts:
            wanted = ", ".join(sorted({recipe.folder for recipe in RECIPES}))
            raise CheckpointError(f"{folder} holds none of the components that can be exported ({wanted})")
        return cls(folder, index, parts)

    def config(self, folder: str, name: str) -> Mapping[str, Any]:
        """A JSON file of a folder that has no graph, such as the scheduler; {} where there is none."""
        return read_object(self.folder / folder / name, CheckpointError, optional=True)


def _part(folder: Path, index: Mapping[str, Any], recipe: Recipe) -> Part | None:
    place = folder / recipe.folder
    if not (place / "config.json").is_file():
        if index.get(recipe.folder, [None])[0] is not None:
            raise CheckpointError(f"model_index.json names a {recipe.folder}, but {place}/config.json is missing")
        return None
    config = read_object(place / "config.json", CheckpointError)
    class_name = (index.get(recipe.folder) or [None, None])[1] or config.get("_class_name")
    class_name = class_name or next(iter(config.get("architectures") or ()), None)
    if class_name not in recipe.classes:
        raise CheckpointError(f"{place} is a {class_name}; lora-edge exports {' or '.join(recipe.classes)} there")
    if (odd := recipe.check(config)) is not None:
        raise CheckpointError(f"{folder} cannot be exported: {odd}")
    return Part(recipe, class_name, place, config)


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The config of a loaded component, with the defaults that its config.json leaves out."""
    config: Any = module.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)
