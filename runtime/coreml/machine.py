"""Packages run by Core ML itself, on macOS: the only file of the runtime that imports coremltools."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed, first_line

UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""Compute units by coremltools' names."""


def tools() -> ModuleType:
    """coremltools.

    Raises:
        BackendUnavailable: another system, or not installed.
    """
    if sys.platform != "darwin":
        raise BackendUnavailable(
            f"the backend coreml runs on macOS, and this is {sys.platform}; mil-reference computes the same packages "
            "on any system, onnxruntime the bundle's own graphs"
        )
    try:
        import coremltools
    except ImportError as error:
        raise BackendUnavailable(
            f"the backend coreml needs coremltools: pip install 'lora-edge[coreml]' ({first_line(error)})"
        ) from error
    module: ModuleType = coremltools
    return module


def check_units(providers: Sequence[str] | None) -> str:
    """The compute units to run on, all of them where nothing is said.

    Raises:
        BackendUnavailable: something else than one name in UNITS.
    """
    wanted = tuple(providers or UNITS[:1])
    if len(wanted) != 1 or wanted[0] not in UNITS:
        raise BackendUnavailable(f"coreml runs on one of {', '.join(UNITS)}, and not on {', '.join(wanted)}")
    return wanted[0]


class MachinePackage:
    """A package, compiled and loaded by Core ML.

    Args:
        path: the `.mlpackage` folder.
        units: one of UNITS.

    Raises:
        BackendUnavailable: see `tools`.
        BundleDamaged: Core ML cannot load it.
    """

    def __init__(self, path: Path, units: str) -> None:
        made = tools()
        try:
            self._model: Any = made.models.MLModel(str(path), compute_units=made.ComputeUnit[units])
        except Exception as error:
            raise BundleDamaged(f"Core ML cannot load {path}: {first_line(error)}") from error

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            made = self._model.predict(dict(feeds))  # it changes the dictionary that it is given
        except Exception as error:
            raise GraphFailed(f"Core ML refused the inputs: {first_line(error)}") from error
        return {name: np.asarray(array) for name, array in made.items()}
