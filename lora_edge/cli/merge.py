"""`lora-edge merge`."""

from pathlib import Path
from typing import Annotated

import typer

from lora_edge.cli.made import open_base, open_multiplied, over, show
from lora_edge.tools.merge import merge as merge_files
from lora_edge.tools.svd import Budget


def merge(
    files: Annotated[list[str], typer.Argument(help="FILE, FILE:multiplier or FILE:te:unet, as in a prompt.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    bundle: Annotated[Path | None, typer.Option(help="The bundle whose layers they change.")] = None,
    base: Annotated[Path | None, typer.Option(help="Or the checkpoint, a folder in diffusers layout.")] = None,
    rank: Annotated[int | None, typer.Option(help="Most lanes of a layer; all if not given.", min=1)] = None,
    conv_rank: Annotated[int | None, typer.Option(help="Most lanes of a 3x3 Conv; --rank if not given.", min=1)] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", "--min-energy", help="Take the fewest lanes that keep this share of each layer."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a progress bar.")] = False,
) -> None:
    """Put several adapters of any kind into one, multipliers included.

    Without a rank the result is exact; layers whose change depends on the base (DoRA, IA3) are then written as whole
    differences.

    Example: lora-edge merge ink.safetensors:0.8 glow.safetensors:0.5 both.safetensors --bundle sd15 --rank 32
    """
    budget = Budget(rank, conv_rank, energy) if (rank, conv_rank, energy) != (None, None, None) else None
    opened = open_base(bundle, base)
    adapters = [open_multiplied(file, opened) for file in files]
    progress = over("layer", as_json)
    show(merge_files(adapters, opened, out, budget, dtype=dtype, overwrite=force, over=progress), as_json)
