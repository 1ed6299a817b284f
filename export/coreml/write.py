"""A checkpoint's `coreml/` folder, top to bottom: convert, palettize and bisect if asked, verify, describe.

    coreml/
      Unet.mlpackage or UnetChunk1.mlpackage and UnetChunk2.mlpackage    TextEncoder.mlpackage
      TextEncoderWithAdapters.mlpackage    VAEDecoder.mlpackage    VAEEncoder.mlpackage
      vocab.json    merges.txt    compile.sh    lora_edge_coreml.json

but for compiling, which only a Mac can do, this is the folder of resources of apple/ml-stable-diffusion.
"""

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lora_edge.bundle import sha256
from lora_edge.errors import ExportError, first_line
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.coreml.bisect import bisect
from lora_edge.export.coreml.convert import convert
from lora_edge.export.coreml.library import quiet
from lora_edge.export.coreml.mend import mend
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.palettize import palettize
from lora_edge.export.coreml.ports import SCALE
from lora_edge.export.coreml.programs import Program, Sizes, programs
from lora_edge.export.coreml.verify import Compared, verify
from lora_edge.export.slotted import REFERENCE_ROWS
from lora_edge.mil import Package
from lora_edge.slots import ABI_VERSION, SlotTable

FOLDER = "coreml"
MANIFEST = "lora_edge_coreml.json"
FORMAT = 1
# Packages per component of a bundle, which is how many times a stage is announced for each of its two.
PACKAGES = {"text_encoder": 2, "unet": 1, "vae_decoder": 1, "vae_encoder": 1}
STAGES = ("converting", "verifying")

COMPILE = """#!/bin/sh
# Compiles the packages for apple/ml-stable-diffusion and LoRAEdgeKit; needs a Mac with Xcode.
# Usage: sh compile.sh [FOLDER]    FOLDER is made beside this file where it is not told: Resources
set -eu
cd "$(dirname "$0")"
out=${1:-Resources}
mkdir -p "$out"
for package in *.mlpackage; do
    xcrun coremlcompiler compile "$package" "$out"
done
cp vocab.json merges.txt lora_edge_coreml.json "$out"
"""


def stages(checkpoint: Checkpoint) -> int:
    """How many stages `write` announces."""
    return len(STAGES) * sum(PACKAGES.get(part.recipe.component, 0) for part in checkpoint.parts)


def write(
    checkpoint: Checkpoint,
    bundle: Path,
    tables: Mapping[str, SlotTable],
    fingerprint: str,
    options: Options,
    stage: Callable[[str], None],
    outcome: Callable[[str, Compared], None],
) -> None:
    """Add `coreml/` to a bundle that is being written.

    Args:
        checkpoint: where it comes from.
        bundle: its folder; the tokenizer is there already.
        tables: component -> its slots.
        fingerprint: of the bundle.
        options: what is asked for.
        stage: called with what is being done, `stages` times.
        outcome: called with the package and each comparison against torch.

    Raises:
        CheckpointError: weights cannot be read.
        ExportError: coremltools is missing, or cannot convert a component.
        VerificationError: a saved package differs from torch or from what was meant.
    """
    folder = bundle / FOLDER
    folder.mkdir()
    sizes = sizes_of(checkpoint)
    components: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for part in checkpoint.parts:
        for program in programs(part, tables[part.recipe.component], options, sizes):
            stage(f"Core ML {program.package}: {STAGES[0]}")
            packages = _save(program, folder, options)
            stage(f"Core ML {program.package}: {STAGES[1]}")
            opened = [Package.open(path) for path in packages]
            for compared in verify(program, opened, options, partial(outcome, program.package)):
                rows.append({"component": program.component, **compared.to_json()})
            components[program.component] = _entry(program, opened)
            digests |= {package.path.name: package.digests() for package in opened}
        gc.collect()
    _copy_tokenizer(bundle / "tokenizer", folder)
    (folder / "compile.sh").write_text(COMPILE, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "abi": ABI_VERSION,
        "fingerprint": fingerprint,
        "rank": options.rank,
        "os": options.os,
        "precision": options.precision,
        "attention": options.attention,
        "palettize": options.palettize,
        "rows": REFERENCE_ROWS,
        "latent": list(sizes.latent),
        "components": components,
        "digests": digests,
        "files": _files(folder),
        "verification": rows,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def sizes_of(checkpoint: Checkpoint) -> Sizes:
    """The size that the UNet was trained at, and the tokens that the text encoder gives."""
    configs: dict[str, Mapping[str, Any]] = {part.recipe.component: part.config for part in checkpoint.parts}
    size = configs.get("unet", {}).get("sample_size") or 64
    tokens = configs.get("text_encoder", {}).get("max_position_embeddings") or 77
    return Sizes((int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1])), int(tokens))


def _save(program: Program, folder: Path, options: Options) -> list[Path]:
    """Convert and write a program; paths of its packages in the order in which they run."""
    path = folder / f"{program.package}.mlpackage"
    model = convert(program, options)
    try:
        with quiet():
            model.save(str(path))
    except Exception as error:
        raise ExportError(f"{path.name} could not be written: {first_line(error)}") from error
    del model
    gc.collect()
    if program.component != "unet":
        return [path]
    if options.palettize:
        palettize(path, options.palettize)
        mend(path, program.adapter_ports)
    return bisect(path) if options.chunks == 2 else [path]


def _entry(program: Program, packages: list[Package]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "packages": [package.path.name for package in packages],
        "ports": {
            package.path.name: {
                "inputs": [port.to_json(name) for name, port in package.inputs.items()],
                "outputs": [port.to_json(name) for name, port in package.outputs.items()],
            }
            for package in packages
        },
    }
    if program.pairs:
        entry |= {"slots": {pair.slot.name: pair.to_json() for pair in program.pairs}, "scale": SCALE}
    return entry


def _copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths
    }
