"""`lora-edge verify`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from lora_edge.bundle import Bundle
from lora_edge.errors import BundleDamaged, GraphFailed
from lora_edge.mil.check import MANIFEST, check, check_package, read_manifest
from lora_edge.mil.package import Package

COREML = "coreml"  # folder of a bundle


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, its coreml folder, or one .mlpackage.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a bundle: versions, every file's size and sha256. Exit code 1 at the first that differs.

    Core ML packages are compared part by part with the manifest beside them, and the place of a fault is named; a
    folder of packages, or one package, is also evaluated once, with zeros and default inputs, on any machine.
    """
    made, sentence = next(how for fits, how in FORMS if fits(bundle))(bundle, as_json)
    typer.echo(json.dumps(made) if as_json else f"{bundle}: {sentence}")


Report = tuple[Mapping[str, Any], str]


def _bundle(folder: Path, quiet: bool) -> Report:
    # First, as it names the place of a fault where a hash names the file.
    packages = check(folder / COREML) if (folder / COREML / MANIFEST).is_file() else {}
    opened = Bundle.open(folder)
    if packages and read_manifest(folder / COREML).get("fingerprint") != opened.fingerprint:
        raise BundleDamaged(f"{folder / COREML} was made for another bundle (its fingerprint differs); export it again")
    for path in tqdm(opened.manifest["files"], disable=quiet, unit="file"):
        opened.verify(path)
    files = len(opened.manifest["files"])
    made: dict[str, Any] = {"bundle": str(folder), "files": files, "fingerprint": opened.fingerprint}
    sentence = f"{files} files as they were exported, fingerprint {opened.fingerprint[:12]}"
    return made | ({"packages": list(packages)} if packages else {}), sentence


def _folder(folder: Path, quiet: bool) -> Report:
    packages = check(folder)
    told = [_evaluated(package) for package in tqdm(packages.values(), disable=quiet, unit="package")]
    sentence = f"{len(told)} packages as they were exported; evaluated with zeros, all outputs are finite"
    return {"folder": str(folder), "packages": told}, sentence


def _package(path: Path, quiet: bool) -> Report:
    known = (path.parent / MANIFEST).is_file()
    package = check_package(path.parent, path.name, read_manifest(path.parent)) if known else Package.open(path)
    told = _evaluated(package)
    word = "as it was exported" if known else f"readable (no {MANIFEST} beside it to compare it with)"
    sentence = (
        f"{word}; {told['operations']} operations, {told['inputs']} inputs of which {told['optional']} are optional; "
        f"evaluated with zeros, {', '.join(told['outputs'])} {'is' if len(told['outputs']) == 1 else 'are'} finite"
    )
    return {**told, "compared": known}, sentence


FORMS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bool], Report]], ...] = (
    (lambda path: path.suffix == ".mlpackage", _package),
    (lambda path: (path / MANIFEST).is_file(), _folder),
    (lambda path: True, _bundle),
)


def _evaluated(package: Package) -> dict[str, Any]:
    """Run a package once: zeros for what it requires, defaults for the rest.

    Raises:
        GraphFailed: an output is not finite.
    """
    required = {name: port for name, port in package.inputs.items() if not port.optional or port.default is None}
    zeros = {name: np.zeros(port.shape, port.type.element.dtype) for name, port in required.items()}
    made = package.run(zeros, "f16")
    for name, array in made.items():
        if not np.isfinite(array).all():
            raise GraphFailed(f"{package.path}: the output {name} is not finite when the inputs are zeros")
    return {
        "package": str(package.path),
        "operations": sum(operation.kind != "const" for operation in package.program.operations),
        "inputs": len(package.inputs),
        "optional": len(package.inputs) - len(required),
        "outputs": list(made),
    }
