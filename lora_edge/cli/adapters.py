"""`lora-edge loras` and `lora-edge inspect`: adapters without running anything."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_edge.adapterfile import AdapterFile, read_adapter
from lora_edge.bundle import Bundle
from lora_edge.errors import AdapterError
from lora_edge.library import Library, short_hash


def loras(
    folder: Annotated[Path, typer.Argument(help="A folder of adapters, subfolders included.")],
    bundle: Annotated[Path | None, typer.Option(help="Say for each whether it fits this bundle.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the adapters of a folder: name, kind, rank, base, hash, and whether each fits a bundle."""
    opened = Bundle.open(bundle) if bundle else None
    library = Library(folder)
    rows = [_row(library, name, opened) for name in library.names()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        about = row.get("refused") or f"{','.join(row['kinds'])}  rank {_span(row['ranks'])}  {row['base'] or ''}"
        typer.echo(f"{row['name']:<24} {row.get('hash', ''):<12}  {about}  {row.get('fits', '')}".rstrip())


def inspect(
    file: Annotated[Path, typer.Argument(help="An adapter: a .safetensors file or a PEFT folder.")],
    bundle: Annotated[Path | None, typer.Option(help="Say whether this bundle would use every tensor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what an adapter file is, and whether every tensor of it would be used."""
    adapter = read_adapter(file)
    about = {**adapter.summary(), "hash": short_hash(file)}
    if bundle:
        about["fits"] = _fits(adapter, Bundle.open(bundle))
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    for key, value in about.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, text in value.items():
                typer.echo(f"  {name}: {text}")
        else:
            typer.echo(f"{key}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")


def _row(library: Library, name: str, bundle: Bundle | None) -> dict[str, Any]:
    try:
        path = library.find(name)
        adapter = read_adapter(path)
        row = {**adapter.summary(), "hash": short_hash(path)}
        return {**row, "fits": _fits(adapter, bundle)} if bundle else row
    except AdapterError as error:
        return {"name": name, "refused": str(error)}


def _fits(adapter: AdapterFile, bundle: Bundle) -> str:
    try:
        return f"fits: {adapter.fit(bundle.tables).report}"
    except AdapterError as error:
        return f"does not fit: {error}"


def _span(ranks: list[int]) -> str:
    return "-".join(map(str, sorted({min(ranks), max(ranks)}))) if ranks else "none"
