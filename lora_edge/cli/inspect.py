"""`lora-edge inspect`: everything about one file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_edge.about import inspection
from lora_edge.bundle import Bundle
from lora_edge.cli.text import MANY, counts, group, listed, plain, size

MOST = 200  # letters of one line of text


def inspect(
    file: Annotated[Path, typer.Argument(help="An adapter: a .safetensors file, a PEFT folder, or a pack.")],
    bundle: Annotated[Path | None, typer.Option(help="Say whether this bundle would use every tensor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all of the metadata.")] = False,
) -> None:
    """Tell what an adapter file is, and whether every tensor of it would be used.

    Example: lora-edge inspect styles/ink.safetensors --bundle demo
    """
    about = inspection(file, Bundle.open(bundle) if bundle else None)
    typer.echo(json.dumps(about, indent=1) if as_json else _text(about))


def _text(about: dict[str, Any]) -> str:
    report = about["report"] or {"unused": {}, "warnings": []}
    groups = (
        (plain(about["name"]), _file(about)),
        ("contents", _contents(about)),
        ("use", _use(about)),
        ("training", {name: plain(value, MOST) for name, value in about["training"].items()}),
        ("in the bundle", _fit(about)),
        ("cannot be read", _first(about.get("unread_modules", {}))),
        ("would go unused", _first(report["unused"])),
        ("warnings", dict(enumerate(about["warnings"] + report["warnings"], 1))),
    )
    told = (group(title, {str(key): item for key, item in items.items()}) for title, items in groups)
    return "\n\n".join(filter(None, told))


def _file(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": about["path"],
        "size": size(about["bytes"]),
        "base": about["base"],
        "pack for": about["pack"] and f"{about['pack']['bundle']} ({about['pack']['fingerprint'][:12]})",
        "AutoV3": about["hash"],
        "AutoV2": about["autov2"],
        "preview": about["preview"],
    }


def _contents(about: dict[str, Any]) -> dict[str, Any]:
    counted = {"kinds": "kind", "ranks": "rank", "alphas": "alpha", "components": "component"}
    told = {name: counts(about[f"modules_by_{key}"]) for name, key in counted.items() if about.get(f"modules_by_{key}")}
    whole = {"kinds": ", ".join(about["kinds"]), "ranks": listed(about["ranks"])}
    tensors, words = {"dtypes": counts(about["tensors_by_dtype"])}, about.get("embeddings", [])
    return {**whole, **told, "modules": about.get("modules"), "tensors": about["tensors"], **tensors, "words": words}


def _use(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "trigger words": about["trigger_words"],
        "frequent tags": counts(dict(about["tags"])),
        "multiplier": about["multiplier"],
        "negative": plain(about["negative"], MOST),
        "few steps": about["few_steps"],
        "title": plain(about["title"], MOST),
        "description": plain(about["description"], MOST),
        "notes": plain(about["notes"], MOST),
    }


def _fit(about: dict[str, Any]) -> dict[str, Any]:
    if about["fits"] is None:
        return {}
    report, cost = about["report"], about.get("cost") or {}
    full = size(cost["full_rank_bytes"]) if cost.get("full_rank") else ""
    if report is None:
        return {"fits": f"no: {about['fit']}"}
    return {
        "fits": f"{'yes' if about['fits'] else 'in part'}: {about['fit']}",
        "layers": [f"{name} ({count})" for name, count in report["layers"].items()],
        "memory": size(report["bytes"]) + (f", {full} of it in layers of full rank" if full else ""),
    }


def _first(reasons: dict[str, str]) -> dict[str, str]:
    more = {"…": f"and {len(reasons) - MANY} more; --json lists them all"} if len(reasons) > MANY else {}
    return {**{plain(name): reason for name, reason in list(reasons.items())[:MANY]}, **more}
