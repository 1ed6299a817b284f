"""`lora-edge export`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from lora_edge import front


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
    with tqdm(disable=as_json, bar_format="{desc:<38} {bar} {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        told = _Told(bar)
        made = front.export(source, bundle, overwrite=force, listener=told)
        bar.update(1)
        bar.set_description_str("done")
    table = told.table
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


class _Told:
    """Hears how an export goes (see `export.build.Listener`): moves a progress bar and keeps the comparisons.

    Attributes:
        table: a row per comparison with torch: component, case, error, largest, relative.
    """

    def __init__(self, bar: "tqdm[Any]") -> None:
        self.table: list[dict[str, Any]] = []
        self._bar = bar
        self._started = False

    def begin(self, total: int) -> None:
        self._bar.total = total

    def stage(self, what: str) -> None:
        self._bar.update(1 if self._started else 0)
        self._started = True
        self._bar.set_description_str(what)

    def outcome(self, component: str, compared: Any) -> None:
        self.table.append({"component": component, **compared.to_json()})
