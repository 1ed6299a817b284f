"""Packages computed by `lora_edge.mil`: on any machine, in numpy, rounded as the package's types say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lora_edge.arrays import Array

PRECISIONS: Mapping[str, Literal["f16", "f32"]] = {"fp16": "f16", "fp32": "f32"}


class ReferencePackage:
    """A package, read once.

    Args:
        path: the `.mlpackage` folder.
        precision: of the export, "fp16" or "fp32"; anything else is computed in float32.

    Raises:
        BundleDamaged: it cannot be read.
    """

    def __init__(self, path: Path, precision: str) -> None:
        from lora_edge.mil import Package

        self._package = Package.open(path)
        self._precision = PRECISIONS.get(precision, "f32")

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._package.run(feeds, self._precision)
