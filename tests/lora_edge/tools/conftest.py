"""Checkpoints to work on, and what an adapter file does to them by the written formulas."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_edge.adapterfile import read_adapter
from lora_edge.tools.checkpoint import Checkpoint
from lora_edge.tools.combine import Multiplied

FILES = {"unet": "unet/diffusion_pytorch_model.safetensors", "text_encoder": "text_encoder/model.safetensors"}


@pytest.fixture(scope="session")
def base(tiny_model: Path) -> Checkpoint:
    return Checkpoint.open(tiny_model)


@pytest.fixture
def retuned(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """retuned({"unet": {"conv_in.weight": delta}}) -> a copy of the tiny model with deltas added to its tensors."""

    def make(changes: Mapping[str, Mapping[str, Any]], name: str = "tuned", dtype: Any = np.float32) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        for component, file in FILES.items():
            tensors = load_file(folder / file)
            for key, delta in changes.get(component, {}).items():
                own = key if key in tensors else key.removeprefix("text_model.")
                tensors[own] = (tensors[own].astype(np.float64) + delta).astype(np.float32)
            floats = {
                key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in tensors.items()
            }
            save_file(floats, folder / file, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture
def opened(base: Checkpoint) -> Callable[..., Multiplied]:
    """opened(path, te, unet) -> the file, fitted to the tiny model."""

    def fit(path: Path, text: float = 1.0, unet: float | None = None) -> Multiplied:
        adapter = read_adapter(path).fit(base.tables, base=base)
        return Multiplied(adapter, text, text if unet is None else unet)

    return fit


@pytest.fixture
def changed(base: Checkpoint) -> Callable[..., dict[str, Any]]:
    """changed(before, after, component) -> tensor -> float64 difference of two checkpoints, without equal ones."""

    def differences(before: Path, after: Path, component: str) -> dict[str, Any]:
        one, other = (load_file(folder / FILES[component]) for folder in (before, after))
        assert one.keys() == other.keys()
        level = "" if component == "unet" else "text_model."
        made = {f"{level}{name.removeprefix(level)}": other[name].astype(np.float64) - one[name] for name in one}
        return {name: delta for name, delta in made.items() if delta.any()}

    return differences


@pytest.fixture(scope="session")
def zoo() -> Any:
    """tests/lora_edge/tools/zoo.py: `zoo.file_of_all(base, seed)` -> tensors, what they do."""
    spec = importlib.util.spec_from_file_location("tools_zoo", Path(__file__).parent / "zoo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
