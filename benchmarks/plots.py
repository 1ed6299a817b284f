"""Plots of results, one PNG a question."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.contestants import CONTESTANTS
from benchmarks.found import Found, Line, delay, put_off
from benchmarks.models import MODELS

COLOURS = {"ours": "tab:blue", "other": "tab:blue", "wider": "tab:cyan", "limit": "tab:gray", "peer": "tab:orange"}


def write_plots(found: Found, model: str, folder: Path) -> list[Path]:
    """Draw what was measured of a model; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, draw in {"growth": growth, "beside_peers": beside_peers, "swap": swap, "batches": batches}.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        if draw(found, model, axes):
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=110, metadata={"Software": None})
            made.append(path)
        pyplot.close(figure)
    return made


def growth(found: Found, model: str, axes: Axes) -> bool:
    """Ratio to the plain graph over the total rank, side by side and in one adapter."""
    for name in found.contestants("ours", question="growth", model=model):
        lines = [line for line in found.all(question="growth", model=model, contestant=name) if "ratio" in line]
        for label, style, wanted in (
            ("adapters of rank 16", "o-", [line for line in lines if line["lanes"] == 16 * line["adapters"]]),
            ("one adapter", "s:", [line for line in lines if line["adapters"] == 1]),
        ):
            where = [line["lanes"] for line in wanted]
            axes.errorbar(
                where,
                [line["ratio"]["median"] for line in wanted],
                yerr=_bars([line["ratio"] for line in wanted]),
                fmt=style, capsize=2, label=f"{CONTESTANTS[name].title}, {label}",
            )  # fmt: skip
    axes.set(xlabel="total rank", ylabel="a step, over the plain graph's", title=_title(found, "growth", model))
    axes.axhline(1, color="tab:gray", linewidth=0.8)
    if axes.containers:
        axes.legend(fontsize="small")
    return bool(axes.containers)


def beside_peers(found: Found, model: str, axes: Axes) -> bool:
    """Seconds of a step at the largest latents, from fast to slow."""
    sides = found.latents(model)
    lines = [
        line
        for line in found.all(question="beside_peers", model=model, latents=sides[-1] if sides else 0)
        if "median" in line
    ]
    return _horizontal(axes, sorted(lines, key=lambda line: line["median"]), _title(found, "beside_peers", model))


def swap(found: Found, model: str, axes: Axes) -> bool:
    """Seconds of a swap to a resident adapter, and from a file where a program has no other way, with what each puts
    off to the next step; logarithmic."""
    lines = []
    for name in found.contestants("ours", "other", "peer", question="swap", model=model):
        wanted = {"question": "swap", "model": model, "contestant": name}
        line = found.one(**wanted, case="resident") or found.one(**wanted, case="file")
        if line:
            low, high = (quartile + put_off(line) for quartile in line["quartiles"])
            lines.append({**line, "median": delay(line), "quartiles": [low, high]})
    axes.set_xscale("log")
    return _horizontal(axes, sorted(lines, key=lambda line: line["median"]), _title(found, "swap", model))


def batches(found: Found, model: str, axes: Axes) -> bool:
    """Images a second over the size of the batch."""
    styles = {"no adapter": "o-", "one for all": "s--", "one for each": "^:"}
    for name in found.contestants("ours", question="batches", model=model):
        for label, style in styles.items():
            lines = [
                line
                for line in found.all(question="batches", model=model, contestant=name)
                if line["case"].endswith(label) and "median" in line
            ]
            axes.plot(
                [line["images"] for line in lines],
                [line["images_per_second"] for line in lines],
                style, label=f"{CONTESTANTS[name].title}, {label}",
            )  # fmt: skip
    axes.set(xlabel="images of a batch", ylabel="images a second", title=_title(found, "batches", model))
    if axes.lines:
        axes.legend(fontsize="small")
    return bool(axes.lines)


TITLES = {
    "growth": "What a step costs more with more adapters",
    "beside_peers": "A step with one adapter of rank 16",
    "swap": "To change to a resident adapter, and what that puts off",
    "batches": "An adapter for each image",
}


def _title(found: Found, question: str, model: str) -> str:
    sides = sorted({line["latents"] for line in found.all(question=question, model=model) if "latents" in line})
    size = f", {sides[-1]}x{sides[-1]} latents" if sides else ""
    return f"{TITLES[question]}\n{MODELS[model].title}{size}"


def _horizontal(axes: Axes, lines: list[Line], title: str) -> bool:
    names = [CONTESTANTS[line["contestant"]].title for line in lines]
    colours = [COLOURS[CONTESTANTS[line["contestant"]].role] for line in lines]
    axes.barh(names, [line["median"] for line in lines], xerr=_bars(lines), color=colours, capsize=2)
    axes.invert_yaxis()
    axes.set(xlabel="seconds (median, quartiles)", title=title)
    return bool(lines)


def _bars(lines: list[Line]) -> list[list[float]]:
    """Distances from the medians to the quartiles."""
    low = [line["median"] - line["quartiles"][0] for line in lines]
    high = [line["quartiles"][1] - line["median"] for line in lines]
    return [low, high]
