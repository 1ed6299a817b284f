"""What `extract`, `resize`, `merge` and `bake` share: progress, the base, adapters with multipliers, the report."""

import json
from functools import partial
from pathlib import Path

import typer
from tqdm import tqdm

from lora_edge.adapterfile import read_adapter
from lora_edge.bundle import Bundle
from lora_edge.cli.text import plain, size, span, table
from lora_edge.errors import RequestError
from lora_edge.tools.checkpoint import Base, Checkpoint
from lora_edge.tools.combine import Multiplied, parse_multiplied
from lora_edge.tools.report import Layer, Made, Over

WORST = 5  # layers that are shown
WHOLE = 0.99995  # energy that is printed as 100 %


def over(unit: str, quiet: bool) -> Over:
    """A progress bar to go through things with."""
    return partial(tqdm, unit=unit, disable=quiet)


def open_base(bundle: Path | None, checkpoint: Path | None) -> Base:
    """What --bundle or --base names.

    Raises:
        RequestError: neither is given, or both.
        BundleError, CheckpointError: it cannot be opened.
    """
    if (bundle is None) == (checkpoint is None):
        raise RequestError("say which layers there are, with either --bundle BUNDLE or --base CHECKPOINT")
    return Bundle.open(bundle) if bundle else Checkpoint.open(str(checkpoint))


def open_multiplied(text: str, base: Base) -> Multiplied:
    """`FILE`, `FILE:multiplier` or `FILE:te:unet`, fitted; raises as `read_adapter` and `AdapterFile.fit`."""
    path, te, unet = (text, 1.0, 1.0) if Path(text).exists() else parse_multiplied(text)
    adapter = read_adapter(path).fit(base.tables, base=base)
    for warning in adapter.report.warnings:
        typer.echo(f"lora-edge: {plain(path)}: {plain(warning)}", err=True)
    return Multiplied(adapter, te, unet)


def show(made: Made, as_json: bool) -> None:
    """Print what was made: the layers that lost most, the total, and warnings."""
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=1))
        return
    worst = sorted((layer for layer in made.layers if layer.share < WHOLE), key=_loss)[:WORST]
    if rows := [(layer.name, layer.rank or "whole", f"{layer.share:.2%}") for layer in worst]:
        typer.echo(table(("layers that lost most", "rank", "energy kept"), rows, most=80))
    others = f", {made.others} biases and norms" if made.others else ""
    ranks = f", rank {span(made.ranks)}" if made.ranks else ""
    told = f"{len(made.layers)} layers{others}{ranks}, {made.share:.2%} of the energy"
    typer.echo(f"Wrote {made.path}: {told}, {size(made.path.stat().st_size)}.")
    for warning in made.warnings:
        typer.echo(f"lora-edge: {plain(warning)}", err=True)


def _loss(layer: Layer) -> float:
    return layer.share
