"""Weights as indices into a table of 64 or 16 values per layer, found by k-means in one dimension (Lloyd's method)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import ExportError, first_line
from lora_edge.export.coreml.library import library, quiet
from lora_edge.export.coreml.options import Bits

ROUNDS = 50


def palettize(package: Path, bits: Bits) -> None:
    """Rewrite a saved package in place; only its own weights change, adapters come in as they are.

    Raises:
        ExportError: coremltools refuses.
    """
    ct = library()
    try:
        with quiet():
            optimize = ct.optimize.coreml
            settings = optimize.OpPalettizerConfig(mode="custom", lut_function=_table(bits))
            model = ct.models.MLModel(str(package), skip_model_load=True)
            changed: Any = optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=settings))
            changed.save(str(package))
    except Exception as error:
        raise ExportError(f"{package.name} could not be palettized: {first_line(error)}") from error


def _table(bits: Bits) -> Callable[[Array], tuple[Array, Array]]:
    def made(weight: Array) -> tuple[Array, Array]:
        values = weight.astype(np.float64).ravel()
        centres = nearest_centres(values, 2**bits).astype(weight.dtype)
        edges = (centres[1:].astype(np.float64) + centres[:-1]) / 2
        return centres, np.searchsorted(edges, values).astype(np.uint8)

    return made


def nearest_centres(values: Array, many: int) -> Array:
    """Centres of k-means, ascending.

    Args:
        values: [n] float64.
        many: number of centres; where there are fewer values than that, some centres coincide.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres: Array = np.quantile(ordered, (np.arange(many) + 0.5) / many)
    for _ in range(ROUNDS):
        bounds = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        starts, ends = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(ordered)]])
        filled = ends > starts
        moved = np.where(filled, (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1), centres)
        if np.allclose(moved, centres, rtol=1e-6, atol=0):
            break
        centres = moved
    return centres
