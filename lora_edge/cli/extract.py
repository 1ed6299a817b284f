"""`lora-edge extract`."""

from pathlib import Path
from typing import Annotated

import typer

from lora_edge.cli.made import over, show
from lora_edge.tools.checkpoint import Checkpoint
from lora_edge.tools.extract import extract as extract_file
from lora_edge.tools.svd import Budget


def extract(
    base: Annotated[Path, typer.Argument(help="The model that adapters start from, a folder in diffusers layout.")],
    tuned: Annotated[Path, typer.Argument(help="The model to come to, of the same architecture.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    rank: Annotated[int, typer.Option(help="Most lanes of a layer.", min=1)],
    conv_rank: Annotated[int | None, typer.Option(help="Most lanes of a 3x3 Conv; --rank if not given.", min=1)] = None,
    energy: Annotated[
        float | None,
        typer.Option("--min-energy", "--energy", help="Take fewer lanes where they keep this share of the energy."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    norms: Annotated[bool, typer.Option("--norms/--no-norms", help="Write biases and norms that differ too.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a progress bar.")] = False,
) -> None:
    """Make an adapter out of two checkpoints: each layer's difference, with as few lanes as asked for.

    Energy is the sum of squared singular values; the share that the lanes keep is told for every layer and in total.
    What differs and no adapter carries (embeddings, the autoencoder) is told too.

    Example: lora-edge extract sd15 my-finetune mine.safetensors --rank 32 --conv-rank 16
    """
    opened = Checkpoint.open(base), Checkpoint.open(tuned)
    budget = Budget(rank, conv_rank, energy)
    made = extract_file(
        *opened, out, budget, dtype=dtype, norms=norms, overwrite=force, over=over("layer", as_json)
    )  # fmt: skip
    show(made, as_json)
