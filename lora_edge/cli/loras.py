"""`lora-edge loras`: what is installed, as A1111's Lora tab shows it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from lora_edge.about import card
from lora_edge.bundle import Bundle
from lora_edge.cli.text import listed, plain, span, table
from lora_edge.errors import AdapterError, BackendError, RequestError
from lora_edge.library import Library
from lora_edge.opening import open_adapter

if TYPE_CHECKING:
    from PIL.Image import Image

HEADS = ("name", "alias", "kind", "rank", "base", "fits", "hash", "preview", "trigger words")
TAGS = 3  # that stand in for trigger words where a file has none
CUT = 40  # letters of a caption


def loras(
    folder: Annotated[Path, typer.Argument(help="A folder of adapters, subfolders included.")],
    bundle: Annotated[Path | None, typer.Option(help="Say for each whether it fits this bundle.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG to write: one picture per adapter; needs --bundle.")] = None,
    prompt: Annotated[str, typer.Option(help="What the pictures of --sheet show.")] = "a cat",
    seed: Annotated[int, typer.Option(help="Seed of every picture.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampling steps of a picture.")] = 20,
    multiplier: Annotated[float, typer.Option(help="Of each adapter in its picture.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that is known.")] = False,
) -> None:
    """List the adapters of a folder: name, kind, rank, base, trigger words, hash, and whether each fits a bundle.

    Example: lora-edge loras styles --bundle demo --sheet styles.png --prompt "a red apple"

    Where a file names no trigger words, its most frequent training tags stand in brackets.
    """
    if sheet and not bundle:
        raise typer.BadParameter("pictures need a bundle: give --bundle", param_hint="--sheet")
    if sheet:
        _check_place(sheet)
    opened = Bundle.open(bundle) if bundle else None
    entries = Library(folder).entries()
    cards = [card(entry, opened) for entry in tqdm(entries, "reading", disable=None, leave=False)]
    if sheet and bundle:
        _draw(cards, bundle, sheet, prompt, seed, steps, multiplier)
    if as_json:
        typer.echo(json.dumps(cards, indent=1))
        return
    typer.echo(_listing(cards) if cards else f"{folder} holds no adapters")
    if sheet:
        typer.echo(f"Wrote {sheet}.")


def _listing(cards: Sequence[dict[str, Any]]) -> str:
    good = [card for card in cards if not card["refused"]]
    parts = [table(HEADS, [_row(card) for card in good])] if good else []
    notes = [(card["name"], note) for card in cards for note in _notes(card)]
    said = "\n".join(f"{plain(name)}: {plain(note)}" for name, note in notes)
    return "\n\n".join([*parts, *filter(None, [said])])


def _row(card: dict[str, Any]) -> tuple[object, ...]:
    tags = listed([tag for tag, _ in card["tags"][:TAGS]])
    words = listed(card["trigger_words"]) or (f"({tags})" if tags else "")
    kind = "pack" if card["pack"] else ""
    kinds = ", ".join(filter(None, (kind, *card["kinds"])))
    preview = Path(card["preview"]).name if card["preview"] else ""
    fits = {None: "", True: "yes", False: "no"}[card["fits"]]
    alias = card["alias"] or ""
    return card["name"], alias, kinds, span(card["ranks"]), card["base"], fits, card["hash"], preview, words


def _notes(card: dict[str, Any]) -> list[str]:
    """What does not go into a line: refusals first."""
    misfit = f"does not fit: {card['fit']}" if card["fits"] is False and not card["refused"] else ""
    few = (card["few_steps"] or "").removeprefix(f"{card['name']} ")
    return [note for note in (card["refused"], misfit, few, *card["warnings"]) if note]


def _check_place(out: Path) -> None:
    """Whether a picture may be written there, before any time is spent on it."""
    if out.suffix.lower() != ".png":
        raise RequestError(f"{out} does not end in .png")
    if not out.parent.is_dir():
        raise RequestError(f"the folder {out.parent} does not exist")


def _draw(
    cards: Sequence[dict[str, Any]], bundle: Path, out: Path, prompt: str, seed: int, steps: int, multiplier: float
) -> None:
    """One picture per adapter, the base's own first; one that cannot be drawn has its caption all the same."""
    from lora_edge.runtime.engine import Engine
    from lora_edge.runtime.gallery import gallery
    from lora_edge.runtime.image import save_png

    engine = Engine.open(bundle)

    def cell(card: dict[str, Any]) -> "tuple[str, Image | None]":
        name = plain(card["name"], CUT)
        if card["refused"] or not card["fits"]:
            return f"{name} ({'cannot be read' if card['refused'] else 'does not fit'})", None
        try:
            adapter = open_adapter(card["path"], engine.bundle)
            return name, engine.generate(prompt, seed=seed, steps=steps, adapters=[(adapter, multiplier)])[0]
        except (AdapterError, BackendError) as error:
            card["warnings"].append(f"it could not be drawn: {error}")
            return f"{name} (failed)", None

    base = engine.generate(prompt, seed=seed, steps=steps)[0]
    cells = [("no adapter", base), *(cell(card) for card in tqdm(cards, "drawing", disable=None, leave=False))]
    save_png(gallery(cells, f"{plain(prompt)}, seed {seed}, {steps} steps, multiplier {multiplier:g}"), out)
