"""`lora-edge export`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    source: Annotated[Path, typer.Argument(help="A model folder in diffusers layout (SD1 architecture, any size).")],
    bundle: Annotated[Path, typer.Argument(help="The bundle to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, without a progress bar.")] = False,
) -> None:
    """Compile a checkpoint into a bundle whose layers take adapters as inputs.

    Every component that the folder has is traced once, given its adapter inputs, written, and compared with torch
    (no adapter, one, two, several ranks, one row and two) before the bundle appears under its name.

    Needs the packages of the extra: pip install 'lora-edge[export]'
    """
    from lora_edge.front import export as export_checkpoint
    from lora_edge.front import progress_listener

    table: list[dict[str, Any]] = []
    with progress_listener(table, quiet=as_json) as listener:
        made = export_checkpoint(source, bundle, overwrite=force, listener=listener)
    size = sum(entry["size"] for entry in made.manifest["files"].values())
    if as_json:
        slots = {slots.component: len(slots) for slots in made.tables}
        facts = {"bundle": str(bundle), "bytes": size, "slots": slots, "fingerprint": made.fingerprint}
        typer.echo(json.dumps({**facts, "verification": table}, indent=1))
        return
    width = max(len(row["case"]) for row in table)
    typer.echo("Largest error against torch, relative to the output's largest value:")
    for row in table:
        typer.echo(f"  {row['component']:<14} {row['case']:<{width}}  {row['relative']:.1e}")
    typer.echo(f"Wrote {bundle}: {', '.join(made.components)}; {size / 1e6:.1f} MB.")
