"""`lora-edge bake`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lora_edge.cli.made import open_multiplied, over
from lora_edge.tools.bake import bake as bake_checkpoint
from lora_edge.tools.checkpoint import Checkpoint


def bake(
    base: Annotated[Path, typer.Argument(help="A checkpoint, a folder in diffusers layout.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    files: Annotated[list[str], typer.Argument(help="FILE, FILE:multiplier or FILE:te:unet, as in a prompt.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a progress bar.")] = False,
) -> None:
    """Write a checkpoint with adapters of any kind in its weights, for programs that want one.

    Files, names, dtypes, configs and tokenizers stay as they are.

    Example: lora-edge bake sd15 sd15-ink ink.safetensors:0.8
    """
    checkpoint = Checkpoint.open(base)
    adapters = [open_multiplied(file, checkpoint) for file in files]
    made = bake_checkpoint(checkpoint, out, adapters, overwrite=force, over=over("file", as_json))
    if as_json:
        told = {"path": str(made.path), "changed": dict(made.changed), "left_out": list(made.left_out)}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"Wrote {made.path}: " + ", ".join(f"{many} tensors of {name}" for name, many in made.changed.items()))
    if made.left_out:
        typer.echo(f"lora-edge: not copied, as they hold the base's weights: {', '.join(made.left_out)}", err=True)
