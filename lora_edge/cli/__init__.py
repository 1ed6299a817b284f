"""The command line: `lora-edge`, and the same as `python -m lora_edge`.

Exit code 0: done; 1: refused or failed, with one sentence on stderr; 2: wrong usage. A command is one file here and
one line in COMMANDS; rooms are imported inside the commands, so that `--help` needs neither torch nor onnxruntime.
"""

import logging
import sys
from typing import Annotated

import typer

from lora_edge import __version__
from lora_edge.cli.bake import bake
from lora_edge.cli.convert import convert
from lora_edge.cli.export import export
from lora_edge.cli.extract import extract
from lora_edge.cli.generate import generate
from lora_edge.cli.inspect import inspect
from lora_edge.cli.loras import loras
from lora_edge.cli.merge import merge
from lora_edge.cli.pack import pack
from lora_edge.cli.resize import resize
from lora_edge.cli.verify import verify
from lora_edge.errors import LoraEdgeError

COMMANDS = (bake, convert, export, extract, generate, inspect, loras, merge, pack, resize, verify)

app = typer.Typer(
    help="Stable Diffusion compiled once, with LoRA adapters as inputs of the graph: a style swap needs no rebuild.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts have brackets of their own
    add_completion=False,
)
for command in COMMANDS:
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lora-edge {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is opened and chosen.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except LoraEdgeError as error:
        typer.echo(f"lora-edge: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"lora-edge: {error.strerror or error}: {error.filename or 'no file named'}", err=True)
        sys.exit(1)
