"""`lora-edge convert`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lora_edge.tools.convert import convert as convert_file


def convert(
    file: Annotated[Path, typer.Argument(help="A .pt, .bin or .ckpt, a PNG with an embedding, or a PEFT folder.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn a pickle into safetensors without running anything in it.

    Names, dtypes and numbers stay as they are; text in the file becomes metadata. A pickle that asks for anything but
    tensors, numbers and text is refused.
    """
    made = convert_file(file, out, overwrite=force)
    if as_json:
        typer.echo(json.dumps({**asdict(made), "source": str(made.source), "path": str(made.path)}, indent=1))
        return
    typer.echo(f"{made.path}: {made.tensors} tensors ({', '.join(made.dtypes)}), {made.nbytes} bytes")
    if made.left_out:
        first = ", ".join(made.left_out[:3]) + ", ..." * (len(made.left_out) > 3)
        typer.echo(f"left out: {len(made.left_out)} tensors beside the state_dict ({first})")
