"""A folder of packages compared with the manifest that was written with it, part by part, so that a fault is named.

    coreml/
      lora_edge_coreml.json      `components` (packages, ports, slots), `digests`, `files`
      Unet.mlpackage …

A hash of a file would find every fault and name none; here the ports, operations and weights are compared first.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lora_edge.bundle import sha256
from lora_edge.errors import BundleDamaged, BundleNotFound, BundleVersionError
from lora_edge.jsonfile import read_object
from lora_edge.mil.package import Package
from lora_edge.mil.paths import inside
from lora_edge.mil.ports import Port

MANIFEST = "lora_edge_coreml.json"
READABLE = {"format": (1,), "abi": (1,)}
MAX_MANIFEST = 64 << 20
AGAIN = "export it again, or copy it again from where it was exported"
MISSPELT = (KeyError, IndexError, TypeError, ValueError, AttributeError)
# What differs between two lines of an operation (see `digest`) -> how it is told.
DIFFERS = ("is now {found} where {wanted} was exported", "reads another input than it did, now {reads}",
           "makes a result of another name, type or shape than it did", "holds another value than it did")  # fmt: skip


def check(folder: str | Path) -> dict[str, Package]:
    """Compare every package of a `coreml/` folder, and every other file, with the folder's manifest.

    Args:
        folder: it holds lora_edge_coreml.json.

    Returns:
        The packages by name, opened.

    Raises:
        BundleNotFound: no manifest there.
        BundleVersionError: another format or graph contract.
        BundleDamaged: something is missing or was changed; the sentence names the place.
        OperationUnknown: a package needs what is not evaluated here.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        made = {name: check_package(folder, name, manifest) for name in _packages(manifest)}
        _check_slots(folder, manifest, made)
        _check_files(folder, manifest, [path for path in manifest["files"] if PurePosixPath(path).parts[0] not in made])
    except MISSPELT as error:
        raise _misspelt(folder, error) from error
    return made


def check_package(folder: Path, name: str, manifest: Mapping[str, Any]) -> Package:
    """One package against the manifest beside it.

    Args:
        folder: it holds both.
        name: `Unet.mlpackage`, …
        manifest: of `read_manifest`.

    Raises:
        As `check`.
    """
    try:
        places = [path for path in manifest["files"] if PurePosixPath(path).parts[0] == name]
        for path in places:
            if not _inside(folder, path).is_file():
                raise BundleDamaged(f"{folder} lacks {path}; {AGAIN}")
        package = Package.open(_inside(folder, name))
        for component in manifest["components"].values():
            if name in component["packages"]:
                _check_ports(package, component["ports"][name])
        _check_digests(package, manifest["digests"][name])
        _check_files(folder, manifest, places)
    except MISSPELT as error:
        raise _misspelt(folder, error) from error
    return package


def read_manifest(folder: Path) -> dict[str, Any]:
    """lora_edge_coreml.json of a folder.

    Raises:
        BundleNotFound: there is none.
        BundleDamaged: it is no JSON object, or too large.
        BundleVersionError: another format or graph contract.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleNotFound(f"{folder} has no {MANIFEST}: make one with `lora-edge export --target coreml`")
    if path.stat().st_size > MAX_MANIFEST:
        raise BundleDamaged(f"{path} is larger than a manifest can be ({path.stat().st_size} bytes)")
    manifest = read_object(path, BundleDamaged)
    for word, readable in READABLE.items():
        if manifest.get(word) not in readable:
            raise BundleVersionError(
                f"{path} was written with {word} {manifest.get(word)!r}; this version reads "
                f"{', '.join(map(str, readable))}: export it again, or use the lora-edge that wrote it"
            )
    return manifest


def _misspelt(folder: Path, error: Exception) -> BundleDamaged:
    return BundleDamaged(f"{folder / MANIFEST} lacks or misspells an entry: {error!r}; export it again")


def _packages(manifest: Mapping[str, Any]) -> list[str]:
    named = [name for component in manifest["components"].values() for name in component["packages"]]
    return list(dict.fromkeys(named))


def _inside(folder: Path, path: str) -> Path:
    file = inside(folder, path)
    if file is None:
        raise BundleDamaged(f"{folder / MANIFEST} names the file {path!r}, which lies outside the folder")
    return file


def _check_ports(package: Package, told: Mapping[str, Any]) -> None:
    for word, ports in (("input", package.inputs), ("output", package.outputs)):
        wanted = {item["name"]: item for item in told[f"{word}s"]}
        if lacking := next((name for name in wanted if name not in ports), None):
            raise BundleDamaged(f"{package.path}: the {word} {lacking} is missing; {AGAIN}")
        for name, port in ports.items():
            if name not in wanted:
                raise BundleDamaged(f"{package.path}: the {word} {name} was not exported; {AGAIN}")
            if fault := next(_port_faults(port, wanted[name]), None):
                raise BundleDamaged(f"{package.path}: the {word} {name} {fault}; {AGAIN}")


def _port_faults(port: Port, wanted: Mapping[str, Any]) -> Iterator[str]:
    if list(port.shape) != list(wanted["shape"]):
        yield f"has the shape {list(port.shape)} where {list(wanted['shape'])} was exported"
    if port.dtype != wanted["dtype"]:
        yield f"is {port.dtype} where {wanted['dtype']} was exported"
    if port.optional != bool(wanted.get("optional", False)):
        yield "is optional and was not" if port.optional else "is no longer optional"
    if port.default != wanted.get("default"):
        yield f"has the default {port.default} where {wanted.get('default')} was exported"


def _check_digests(package: Package, told: Mapping[str, Mapping[str, str]]) -> None:
    found = package.digests()
    for word, kind in (("op", "ops"), ("weight", "weights")):
        here, wanted = found[kind], told[kind]
        for name in [*here, *wanted]:
            if here.get(name) != wanted.get(name):
                fault = _fault(here.get(name), wanted.get(name), word, _reads(package, name))
                raise BundleDamaged(f"{package.path}: the {word} {name} {fault}; {AGAIN}")


def _reads(package: Package, name: str) -> str:
    """What an operation reads, by parameter."""
    found = next((operation for operation in package.program.operations if operation.name == name), None)
    inputs = sorted(found.inputs.items()) if found else []
    return ", ".join(f"{word} {bound}" for word, bindings in inputs for bound in bindings if isinstance(bound, str))


def _fault(found: str | None, wanted: str | None, word: str, reads: str) -> str:
    if found is None or wanted is None:
        return "is missing" if found is None else "was not exported"
    if word == "weight":
        return "was changed"
    here, there = found.split(" "), wanted.split(" ")
    pairs = zip(here, there, DIFFERS, strict=False)  # a manifest may hold another number of words
    sentence = next((told for new, old, told in pairs if new != old), "was changed")
    return f"({here[0]}) {sentence.format(found=here[0], wanted=there[0], reads=reads)}"


def _check_slots(folder: Path, manifest: Mapping[str, Any], packages: Mapping[str, Package]) -> None:
    """The table of slots names inputs that the packages have, in their shapes."""
    for component in manifest["components"].values():
        ports = {name: port for package in component["packages"] for name, port in packages[package].inputs.items()}
        for slot, entry in component.get("slots", {}).items():
            for leaf in ("down", "up"):
                port = ports.get(entry[leaf])
                if port is None or list(port.shape) != list(entry[f"{leaf}_shape"]):
                    here = f"which is {list(port.shape)}" if port else "which no package has"
                    raise BundleDamaged(
                        f"{folder / MANIFEST}: the slot {slot} takes its {leaf}, {entry[f'{leaf}_shape']}, by the "
                        f"input {entry[leaf]}, {here}; {AGAIN}"
                    )


def _check_files(folder: Path, manifest: Mapping[str, Any], paths: Iterable[str]) -> None:
    for path in paths:
        entry, file = manifest["files"][path], _inside(folder, path)
        if not file.is_file():
            raise BundleDamaged(f"{folder} lacks {path}; {AGAIN}")
        if file.stat().st_size != entry["size"]:
            raise BundleDamaged(f"{file} has {file.stat().st_size} bytes and should have {entry['size']}; {AGAIN}")
        if sha256(file) != entry["sha256"]:
            raise BundleDamaged(f"{file} was changed after the export (its sha256 differs); {AGAIN}")
