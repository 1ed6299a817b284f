"""`lora-edge pack`."""

import json
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.opening import open_adapter
from lora_edge.ortadapter import SUFFIX as ORT_SUFFIX
from lora_edge.pack import SUFFIX, write_pack


class Format(StrEnum):
    safetensors = "safetensors"
    onnx_adapter = "onnx_adapter"


class Dtype(StrEnum):
    fp16 = "fp16"
    fp32 = "fp32"


def pack(
    file: Annotated[Path, typer.Argument(help="An adapter: a .safetensors file, a PEFT folder, or another pack.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it will be used with.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=f"NAME{SUFFIX}; for onnx_adapter NAME, which .COMPONENT{ORT_SUFFIX} follows."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the low-rank factors: fp16 (default) or fp32 (always for onnx_adapter).")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="onnx_adapter is ONNX Runtime's own, one file per component.")
    ] = Format.safetensors,
    component: Annotated[
        str | None, typer.Option(help="The only component to change, where names fit several.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write an adapter for one bundle: the tensors as its graphs take them, readable from any language.

    Loading a pack resolves no names and computes nothing. It works with that bundle alone.
    """
    opened = Bundle.open(bundle)
    adapter = open_adapter(file, opened, component)
    if form is Format.safetensors:
        target = out or Path(_name(file) + SUFFIX)
        paths = [write_pack(adapter, opened, target, dtype or Dtype.fp16, force)]
    elif dtype is Dtype.fp16:
        raise RequestError("an .onnx_adapter holds float32, as the graph takes it; leave --dtype fp16 out")
    else:
        from lora_edge.runtime.ortadapter import write_onnx_adapters

        stem = out.with_name(out.name.removesuffix(ORT_SUFFIX)) if out else Path(_name(file))
        paths = write_onnx_adapters(adapter, opened, stem, force)
    sizes = {str(path): path.stat().st_size for path in paths}
    if as_json:
        made = [{"file": path, "bytes": size} for path, size in sizes.items()]
        typer.echo(json.dumps({"adapter": adapter.name, "bundle": opened.fingerprint, "files": made}, indent=1))
        return
    for path, size in sizes.items():
        typer.echo(f"Wrote {path}: {size / 1e6:.1f} MB for {opened.name} ({opened.fingerprint[:12]}).")


def _name(file: Path) -> str:
    """What the file is called, whatever it says of itself: the name of another file comes of it."""
    name = file.resolve().name
    return reduce(str.removesuffix, (SUFFIX, ORT_SUFFIX, ".safetensors"), name)
