"""A component in Core ML packages as a `Graph`: batches of any size in runs of the package's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import RequestError
from lora_edge.graph import GraphInput
from lora_edge.runtime.coreml import translate
from lora_edge.runtime.coreml.manifest import Packaged


class Runner(Protocol):
    """One package, loaded."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run once.

        Args:
            feeds: every input that has no default, in the types and shapes of its ports.

        Raises:
            GraphFailed: the package refuses them.
        """


OpenPackage: TypeAlias = Callable[[Path], Runner]


class PackagedGraph:
    """A component in one package or several, run one after the other (the `Graph` of these backends).

    A package has a fixed number of rows; other batches take several runs, the last of them filled up with its last row.
    Outputs are float32 whatever the package declares.

    Args:
        component: `unet`, `text_encoder`, `vae_decoder` or `vae_encoder`.
        packaged: its packages.
        open_package: loads one.

    Raises:
        BundleDamaged: a package cannot be read, or takes other inputs than are known.
    """

    place: Any = None

    def __init__(self, component: str, packaged: Packaged, open_package: OpenPackage) -> None:
        self._plain = translate.inputs(component, packaged)
        self.inputs: Mapping[str, GraphInput] = {name: given.described for name, given in self._plain.items()}
        self.optional: Mapping[str, GraphInput] = {
            name: GraphInput(port.shape, port.dtype) for name, port in packaged.adapter_inputs.items()
        }
        self._outputs = translate.outputs(component, packaged)
        self.outputs = tuple(self._outputs)
        self._rows = next(iter(self._plain.values())).port.shape[0]
        self._stages = [(tuple(stage.inputs), open_package(stage.path)) for stage in packaged.stages]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if strange := feeds.keys() - self._plain.keys() - self.optional.keys():
            raise RequestError(
                f"the Core ML packages have no input {', '.join(sorted(strange))} (embeddings are among what they "
                "lack); use the backend onnxruntime"
            )
        plain = {name: given.turn(feeds[name]) for name, given in self._plain.items()}
        adapters = {name: feeds[name] for name in feeds.keys() & self.optional.keys()}
        counts = {len(array) for array in plain.values()} - {1}
        if len(counts) > 1:
            told = ", ".join(f"{name} {len(array)}" for name, array in plain.items())
            raise RequestError(f"the inputs have different numbers of rows: {told}")
        rows = max(counts, default=1)
        runs = [self._run(plain, adapters, own) for own in self._cut(rows)]
        return {
            ours: np.concatenate([run[theirs] for run in runs])[:rows].astype(np.float32)
            for ours, theirs in self._outputs.items()
        }

    def _cut(self, rows: int) -> Iterator[Sequence[int]]:
        """Which rows each run takes."""
        for start in range(0, rows, self._rows):
            yield [min(row, rows - 1) for row in range(start, start + self._rows)]

    def _run(self, plain: Mapping[str, Array], adapters: Mapping[str, Array], rows: Sequence[int]) -> dict[str, Array]:
        values = dict(adapters)
        for name, array in plain.items():
            port = self._plain[name].port
            own = array[rows] if len(array) > 1 else np.repeat(array, len(rows), axis=0)
            values[port.name] = np.ascontiguousarray(own, port.dtype)
        for takes, runner in self._stages:
            values |= runner.run({name: values[name] for name in takes if name in values})
        return values
