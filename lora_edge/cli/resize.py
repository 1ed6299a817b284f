"""`lora-edge resize`."""

from pathlib import Path
from typing import Annotated

import typer

from lora_edge.adapterfile import read_adapter
from lora_edge.cli.made import open_base, open_multiplied, over, show
from lora_edge.tools.merge import merge
from lora_edge.tools.resize import resize as resize_file
from lora_edge.tools.svd import Budget


def resize(
    file: Annotated[Path, typer.Argument(help="An adapter: a .safetensors file or a PEFT folder.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    rank: Annotated[int | None, typer.Option(help="Most lanes of a layer.", min=1)] = None,
    conv_rank: Annotated[int | None, typer.Option(help="Most lanes of a 3x3 Conv; --rank if not given.", min=1)] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", "--min-energy", help="Take the fewest lanes that keep this share of each layer."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Make a LoRA of any kind, for the layers of this bundle.")] = None,
    base: Annotated[Path | None, typer.Option(help="The same, for the layers of this checkpoint.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp16, bf16 or fp32; if not given, as in the file, or fp16 for another kind.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a progress bar.")] = False,
) -> None:
    """Cut the lanes of an adapter to those that matter most.

    A LoRA or LoCon keeps the names, dtypes and scales of its file. Any other kind becomes a LoRA with kohya's names
    when --bundle or --base tells the layers and their weights.

    Example: lora-edge resize ink.safetensors ink-8.safetensors --rank 8 --energy 0.95
    """
    budget = Budget(rank, conv_rank, energy)
    progress = over("layer", as_json)
    if bundle is None and base is None:
        made = resize_file(read_adapter(file), out, budget, dtype=dtype, overwrite=force, over=progress)
    else:
        opened = open_base(bundle, base)
        adapters = [open_multiplied(str(file), opened)]
        made = merge(adapters, opened, out, budget, dtype=dtype or "fp16", overwrite=force, over=progress)
    show(made, as_json)
