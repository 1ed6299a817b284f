"""`lora-edge verify`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from lora_edge.bundle import Bundle


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a bundle: versions, every file's size and sha256. Exit code 1 at the first that differs."""
    opened = Bundle.open(bundle)
    for path in tqdm(opened.manifest["files"], disable=as_json, unit="file"):
        opened.verify(path)
    files = len(opened.manifest["files"])
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle), "files": files, "fingerprint": opened.fingerprint}))
    else:
        typer.echo(f"{bundle}: {files} files as they were exported, fingerprint {opened.fingerprint[:12]}")
