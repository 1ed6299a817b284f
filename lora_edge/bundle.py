"""Bundles on disk: the manifest, and opening one without trusting it.

    bundle/
      lora_edge.json            this manifest
      model_index.json          as diffusers writes it
      unet/model.onnx           graph; model.onnx.data its weights; config.json; norms.safetensors;
                                model_linear.onnx, their parts *_prompt.onnx, *_weights.onnx,
                                *_states.onnx, *_step.onnx and, when asked for, model.pt2, over the same weights
      text_encoder/  vae_decoder/  vae_encoder/
      tokenizer/  scheduler/scheduler_config.json

The manifest is JSON: `format` and `abi` versions, `family`, `prediction_type`, `reference`, `components` (graph file,
graphs, whole and in parts, by backend and scope, slots in lane order, norms, facts, places of the slots' weights,
verification), `files` (size and sha256 of every other file) and a `fingerprint`, which packs name. Rules of change:
entries are added, never given another meaning; a reader refuses a `format` or an `abi` that it does not list.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lora_edge.arrays import FloatArray
from lora_edge.errors import BundleDamaged, BundleNotFound, BundleVersionError, ComponentMissing
from lora_edge.graphweights import GraphWeights
from lora_edge.jsonfile import read_object
from lora_edge.scope import ALL, SCOPES
from lora_edge.slots import ABI_VERSION, Slot, SlotTable
from lora_edge.tensorfile import TensorFile

MANIFEST = "lora_edge.json"
FORMAT = 1
READABLE_FORMATS = (1,)
READABLE_ABIS = (ABI_VERSION,)
MAX_MANIFEST = 64 << 20

Check = Literal["size", "full"]


@dataclass(frozen=True)
class Component:
    """One compiled model of a bundle.

    Attributes:
        name: `unet`, `text_encoder`, `vae_decoder`, …
        graph: path of the ONNX file that takes the whole contract.
        graphs: backend -> scope -> path of the graph, from narrow to wide; all lie over the same weights.
        table: its slots.
        config: the component's own config.json.
        parts: backend -> scope -> paths of the same graph in parts, in the order in which they run (see
            `lora_edge.parts`).
        weights: where its slots' own weights lie; None where the manifest does not say.
    """

    name: str
    graph: Path
    table: SlotTable
    config: Mapping[str, Any]
    weights: GraphWeights | None = None
    graphs: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, tuple[Path, ...]]] = field(default_factory=dict)

    def scopes(self, backend: str) -> list[str]:
        """Names of the scopes that there are graphs of for a backend, from narrow to wide."""
        made = {*self.graphs.get(backend, ()), *self.parts.get(backend, ())}
        return [name for name in SCOPES if name in made]

    def norms(self) -> dict[str, FloatArray]:
        """`<norm>.weight` and `<norm>.bias` -> the base's values [channels] float32."""
        if not self.table.norms:
            return {}
        file = TensorFile.open(self.graph.parent / "norms.safetensors", BundleDamaged)
        return {name: file.read(name) for name in file.names}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose versions, paths and sizes have been checked.

    Attributes:
        folder: where it is.
        manifest: lora_edge.json.
        components: by name.
    """

    folder: Path
    manifest: Mapping[str, Any]
    components: Mapping[str, Component]

    @classmethod
    def open(cls, folder: str | Path, check: Check = "size") -> "Bundle":
        """Read the manifest and check the files against it.

        Args:
            folder: the bundle.
            check: "size" compares sizes; "full" hashes every file too.

        Raises:
            BundleNotFound: no manifest there.
            BundleVersionError: another format or graph contract.
            BundleDamaged: the manifest cannot be read, or a file is missing, changed or outside the folder.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for word, readable in (("format", READABLE_FORMATS), ("abi", READABLE_ABIS)):
            if manifest.get(word) not in readable:
                raise BundleVersionError(
                    f"{folder} was written with {word} {manifest.get(word)!r}; this version reads "
                    f"{', '.join(map(str, readable))}: export it again, or use the lora-edge that wrote it"
                )
        try:
            for path, entry in manifest["files"].items():
                _check_file(folder, path, int(entry["size"]), str(entry["sha256"]) if check == "full" else None)
            components = {name: read_component(folder, name, entry) for name, entry in manifest["components"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BundleDamaged(
                f"{folder / MANIFEST} lacks or misspells an entry: {error!r}; export it again"
            ) from error
        return cls(folder, manifest, components)

    def component(self, name: str) -> Component:
        """A component by name.

        Raises:
            ComponentMissing: the bundle has none of that name.
        """
        if name not in self.components:
            raise ComponentMissing(f"{self.folder} has no {name}; it has {', '.join(self.components)}")
        return self.components[name]

    @property
    def tables(self) -> list[SlotTable]:
        """Slot tables of the components that take updates."""
        return [component.table for component in self.components.values() if len(component.table)]

    def weight(self, component: str, slot: str) -> FloatArray:
        """A layer's own weight, float32 in torch's layout: [out, in] or [out, in, kh, kw].

        Raises:
            BundleVersionError: the bundle was written before manifests told where weights lie.
            BundleDamaged: the file of the weights was cut since the bundle was opened.
        """
        return self._weights(component).weight(slot)

    def bias(self, component: str, slot: str) -> FloatArray | None:
        """A layer's own bias [out] float32, None where it has none; raises as `weight`."""
        return self._weights(component).bias(slot)

    def _weights(self, component: str) -> GraphWeights:
        weights = self.component(component).weights
        if weights is None:
            raise BundleVersionError(
                f"{self.folder} does not say where the weights of its {component} lie, which this adapter is computed "
                "from; export it again with this version"
            )
        return weights

    @property
    def name(self) -> str:
        """What the bundle was exported as."""
        return str(self.manifest.get("name") or self.folder.resolve().name)

    @property
    def fingerprint(self) -> str:
        """Identifies graphs and weights, whatever the folder is called."""
        return str(self.manifest["fingerprint"])

    def verify(self, path: str) -> None:
        """Hash one file of the manifest.

        Raises:
            BundleDamaged: it is missing or was changed.
        """
        entry = self.manifest["files"][path]
        _check_file(self.folder, path, int(entry["size"]), str(entry["sha256"]))

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON file of the bundle, such as `scheduler/scheduler_config.json`."""
        return read_object(self.folder / path, BundleDamaged)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> size and sha256 of every file below a folder, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths
    }


def fingerprint(files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over names and hashes of the graph files."""
    lines = [f"{path} {entry['sha256']}" for path, entry in sorted(files.items()) if ".onnx" in path]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleNotFound(f"{folder} is not a bundle: it has no {MANIFEST}; make one with `lora-edge export`")
    if path.stat().st_size > MAX_MANIFEST:
        raise BundleDamaged(f"{path} is larger than a manifest can be ({path.stat().st_size} bytes)")
    return read_object(path, BundleDamaged)


def _inside(folder: Path, path: str) -> Path:
    """A manifest names files below its own folder only."""
    pure = PurePosixPath(path)
    inside = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not inside.resolve().is_relative_to(folder.resolve()):
        raise BundleDamaged(f"{folder / MANIFEST} names the file {path!r}, which lies outside the bundle")
    return inside


def _check_file(folder: Path, path: str, size: int, digest: str | None) -> None:
    file = _inside(folder, path)
    if not file.is_file():
        raise BundleDamaged(f"{folder} lacks {path}; copy the bundle again or export it anew")
    if file.stat().st_size != size:
        raise BundleDamaged(f"{file} has {file.stat().st_size} bytes and should have {size}; copy the bundle again")
    if digest is not None and sha256(file) != digest:
        raise BundleDamaged(f"{file} was changed after the export (its sha256 differs); copy the bundle again")


def read_component(folder: Path, name: str, entry: Mapping[str, Any]) -> Component:
    """A component as its entry in the manifest describes it.

    Args:
        folder: of the bundle.
        name: of the component.
        entry: its part of the manifest.

    Raises:
        BundleDamaged: a file is missing or outside the folder.
        KeyError, TypeError, ValueError, AttributeError, IndexError: an entry is missing or misspelled.
    """
    graph = _graph(folder, entry["graph"])
    listed = {"onnxruntime": {ALL.name: entry["graph"]}} | (entry.get("graphs") or {})  # older bundles have one graph
    graphs = {
        backend: {scope: _graph(folder, files[scope]) for scope in SCOPES if scope in files or scope == ALL.name}
        for backend, files in listed.items()
    }
    told = entry.get("parts") or _earlier(entry.get("halves") or {})
    parts = {
        backend: {scope: tuple(_graph(folder, path) for path in files[scope]) for scope in SCOPES if scope in files}
        for backend, files in told.items()
    }
    slots = tuple(Slot.from_json(item) for item in entry["slots"])
    table = SlotTable(name, slots, dict(entry["norms"]), dict(entry["facts"]))
    lie = entry.get("weights")
    weights = GraphWeights.parse(lie, _inside(folder, lie["file"]), table) if lie else None
    return Component(
        name, graph, table, read_object(graph.parent / "config.json", BundleDamaged), weights, graphs, parts
    )


def _earlier(halves: Mapping[str, Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, list[str]]]:
    """Parts as earlier bundles tell them."""
    return {
        backend: {scope: [files["once"], files["step"]] for scope, files in scopes.items()}
        for backend, scopes in halves.items()
    }


def _graph(folder: Path, path: str) -> Path:
    graph = _inside(folder, path)
    if not graph.is_file():
        raise BundleDamaged(f"{folder} lacks {path}; copy the bundle again or export it anew")
    return graph
