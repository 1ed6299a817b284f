"""`lora-edge export`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from lora_edge import front

TARGETS = ("onnx", "coreml", "torch")
QUANTIZE, STORES = ("int8", "int4"), ("fp32", "fp16", "bf16")


def _coreml(help: str, *names: str) -> Any:
    return typer.Option(*names, help=f"Core ML: {help}", show_default=False)


def export(
    source: Annotated[Path, typer.Argument(help="A model folder in diffusers layout (SD1 architecture, any size).")],
    bundle: Annotated[Path, typer.Argument(help="The bundle to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is already there.")] = False,
    target: Annotated[
        str, typer.Option(help="onnx, or besides: coreml for Core ML packages, torch for programs.")
    ] = "onnx",
    quantize: Annotated[
        str | None,
        typer.Option(
            help="int8 or int4: less memory for the weights; adapters on top stay float32.", show_default=False
        ),
    ] = None,
    store: Annotated[
        str, typer.Option(help="fp32, fp16 or bf16: large weights on the disk; in memory they are float32.")
    ] = "fp32",
    rank: Annotated[int | None, _coreml("lanes of a slot, for all adapters of a request: 16, 32 or 64. [32]")] = None,
    os: Annotated[str | None, _coreml("oldest system to run on: iOS16, iOS17 or iOS18. [iOS17]")] = None,
    precision: Annotated[str | None, _coreml("fp16 or fp32. [fp16]")] = None,
    attention: Annotated[str | None, _coreml("original (GPU) or split-einsum (Neural Engine). [original]")] = None,
    palettize: Annotated[int | None, _coreml("weights of the UNet in 6 or 4 bits.")] = None,
    chunks: Annotated[int | None, _coreml("2 cuts the UNet into two packages, as iPhones need it. [1]")] = None,
    conv_slots: Annotated[bool | None, _coreml("let 3x3 convolutions take adapters too.", "--conv-slots")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, without a progress bar.")] = False,
) -> None:
    """Compile a checkpoint into a bundle whose layers take adapters as inputs.

    Every component that the folder has is traced once, given its adapter inputs, written, and compared with torch
    (no adapter, one, two, several ranks, one row and two) before the bundle appears under its name.

    Programs are what the backend torch runs, on mps, cuda or cpu; they share the weights of the ONNX graphs.

    Needs the packages of the extra: pip install 'lora-edge[export]', and 'lora-edge[coreml]' for Core ML.
    """
    given = (
        ("--target", target, TARGETS),
        ("--quantize", quantize or QUANTIZE[0], QUANTIZE),
        ("--store", store, STORES),
    )
    for option, value, known in given:
        if value not in known:
            raise typer.BadParameter(f"{value!r} is neither {' nor '.join(known)}", param_hint=option)
    asked = {"rank": rank, "os": os, "precision": precision, "attention": attention, "palettize": palettize}
    asked |= {"chunks": chunks, "conv_slots": conv_slots}
    settings = {name: value for name, value in asked.items() if value is not None}
    if settings and target != "coreml":
        raise typer.BadParameter("is for --target coreml", param_hint=f"--{next(iter(settings)).replace('_', '-')}")
    if (quantize or store != "fp32") and target != "onnx":
        raise typer.BadParameter("is for --target onnx", param_hint="--quantize" if quantize else "--store")
    with tqdm(disable=as_json, bar_format="{desc:<38} {bar} {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        told = _Told(bar)
        besides: Any = {"coreml": {"coreml": settings}, "torch": {"torch": True}}.get(target, {})
        made = front.export(source, bundle, overwrite=force, listener=told, quantize=quantize, store=store, **besides)
        bar.update(1)
        bar.set_description_str("done")
    table = told.table
    size = sum(entry["size"] for entry in made.manifest["files"].values())
    shrunk = {name: entry["smaller"] for name, entry in made.manifest["components"].items() if "smaller" in entry}
    if as_json:
        slots = {slots.component: len(slots) for slots in made.tables}
        facts = {"bundle": str(bundle), "bytes": size, "slots": slots, "fingerprint": made.fingerprint}
        facts |= {"smaller": shrunk} if shrunk else {}
        typer.echo(json.dumps({**facts, "verification": table}, indent=1))
        return
    first, width = (max(len(row[column]) for row in table) for column in ("component", "case"))
    typer.echo("Largest error against torch, relative to the output's largest value:")
    for row in table:
        typer.echo(f"  {row['component']:<{first}} {row['case']:<{width}}  {row['relative']:.1e}")
    for component, entry in shrunk.items():
        if entry["psnr"] is not None:
            held = entry["quantize"] or entry["store"]
            typer.echo(f"The {component} in {held} against its original: PSNR {entry['psnr']:.1f} dB.")
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
