"""What a row of the table of refusals is, and the desk at which its file is made."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lora_edge import errors
from lora_edge.bundle import Bundle
from lora_edge.opening import open_adapter

MISMATCH, DAMAGED, VALUE = errors.AdapterMismatch, errors.AdapterFileDamaged, errors.AdapterValueError
NOT_FOUND, UNKNOWN, BASE = errors.AdapterNotFound, errors.UnknownKind, errors.BaseNeeded
PACK, MISSING = errors.PackMismatch, errors.ComponentMissing

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
Q = f"{FLAT}_attn1_to_q"  # [8, 8], without a bias
OUT = f"{FLAT}_attn1_to_out_0"  # [8, 8]
K = f"{FLAT}_attn2_to_k"  # [8, 16]
CONV = "lora_unet_conv_in"  # [8, 4, 3, 3]
NORM = "lora_unet_conv_norm_out"  # [8]

Tensors = Mapping[str, Any]  # name -> array, or the shape of an array of ones


@dataclass
class Desk:
    """Where files are made: a folder, and a bundle that they are opened for."""

    folder: Path
    bundle: Bundle

    def save(self, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "f.safetensors") -> Path:
        """A file by the reference implementation."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        save_file({key: ones(value) for key, value in tensors.items()}, path, metadata)
        return path

    def bytes(self, data: bytes, name: str = "f.safetensors") -> Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name

    def peft(self, tensors: Tensors, settings: Any) -> Path:
        """A folder of PEFT; settings: the object, or the text of the file."""
        self.save(tensors, name="peft/adapter_model.safetensors")
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (self.folder / "peft" / "adapter_config.json").write_text(text)
        return self.folder / "peft"

    def open(self, path: Path, **options: Any) -> Any:
        """As the engine does."""
        return open_adapter(path, self.bundle, **options)


Act = Callable[[Desk], Any]


@dataclass(frozen=True)
class Case:
    """One refusal.

    Attributes:
        name: what is wrong with the file.
        act: makes the file and reads it.
        error: exactly this class is raised.
        sentence: a regular expression for the whole message; {file} stands for the path of the file, {peft} for
            that of a folder of PEFT, and {folder} for where both lie.
        misfits: the tensors of which none can be used, where others of the same file can; None where nothing can.
    """

    name: str
    act: Act
    error: type[errors.LoraEdgeError]
    sentence: str
    misfits: Tensors | None = None


def ones(value: Any) -> Any:
    return np.ones(value, np.float32) if isinstance(value, tuple) else np.asarray(value)


def of(module: str, leaves: Tensors) -> dict[str, Any]:
    """The tensors of one module."""
    return {f"{module}.{leaf}": value for leaf, value in leaves.items()}


def pair(module: str = Q, rank: int = 2) -> dict[str, Any]:
    """A LoRA that fits a layer of [8, 8]."""
    return of(module, {"lora_down.weight": (rank, 8), "lora_up.weight": (8, rank)})


def peft_pair(layer: str = f"{BLOCK}.attn1.to_q") -> dict[str, Any]:
    return of(f"base_model.model.{layer}", {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)})


def opened(name: str, tensors: Tensors, error: type[errors.LoraEdgeError], sentence: str, **options: Any) -> Case:
    """A file that is opened."""
    return Case(name, lambda desk: desk.open(desk.save(tensors), **options), error, sentence)


def misfit(
    name: str, module: str, leaves: Tensors, sentence: str, error: type[errors.LoraEdgeError] = MISMATCH
) -> Case:
    """A file of one module, which does not fit its layer."""
    hint = "(; made for [^;]+)?" if error is MISMATCH else ""
    whole = rf"{{file}}: 1 of 1 modules cannot be used: '{module}' {sentence}{hint}"
    return replace(opened(name, of(module, leaves), error, whole), misfits=of(module, leaves))
