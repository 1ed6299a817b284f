"""Results -> docs/benchmarks.md, docs/plots/*.png and the section between the marks in README.md.

`python -m benchmarks.report` writes them again; the same results give the same text.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.bars import VERDICTS, answers
from benchmarks.contestants import CONTESTANTS
from benchmarks.found import Found, on_machines
from benchmarks.harness import precision_of
from benchmarks.models import MODELS, ROOT

BEGIN, END = "<!-- benchmarks: `make bench` writes what is between these marks -->", "<!-- end of benchmarks -->"
LAZY = (
    "\\* with what the next step takes longer, where the program makes the change there.\n"
    "Later: what the step after a change to a resident adapter (mapped packs: to a new one) takes beyond the one after "
    "it.\n"
)

CHOICE = "OpenVINO, the hot-swap and `fuse_lora` compute in"

SECTIONS: tuple[tuple[str, str, Callable[[Found, str], str]], ...] = (
    # title, method, table
    (
        "A step, over the same step of the plain graph",
        "The same graph without LoRA inputs, on the same library, in turns. Median of the rounds' ratios and, in "
        "brackets, where it lies with 95 %.",
        tables.against_plain,
    ),
    ("The same with adapters of other ranks", "At the smallest latents.", tables.ranks),
    (
        "A step with one adapter of rank 16",
        "Medians, and ratios to ours in the same rounds. The difference is that of the results, over the change that "
        "the adapter makes: what a lower precision costs.",
        tables.beside_peers,
    ),
    (
        "Changing the style",
        LAZY + "Moved: the bytes that a change of the multiplier copies, where the program tells.",
        tables.changes,
    ),
    (
        "An adapter for each image",
        "Images a second at 20 steps with guidance, without encoding and decoding; ratios to the batch without "
        "adapter.",
        tables.batches,
    ),
    (
        "Memory of an image, and opening",
        "Largest resident size of a fresh process that makes one image, and after it; time from opening to the end of "
        "the first step. Ratios to the plain graph on the same library.",
        tables.memory,
    ),
    (
        "Quantized weights",
        "What opening the UNet and one small step add to the process; how far one step without adapter is from fp32's, "
        "in dB of its range; a step at the smallest latents. Ratios to fp32.",
        tables.quantized,
    ),
    ("On disk", "", tables.disk),
    ("What could not be measured", "", tables.cannot),
)


def document(machines: Sequence[Found]) -> str:
    """docs/benchmarks.md."""
    parts = [
        "# Benchmarks\n\n`make bench` measures and writes this page; `benchmarks/` says how. Every figure is a median "
        "over rounds in which the contestants took turns, every ratio one of two turns in a row or in one round. A "
        "machine's results are its own: nothing is compared across machines.\n",
        "## Machines\n\nWhat was asked for, and how many of it each machine answers.\n\n" + _machines(machines),
    ]
    for found in machines:
        parts += _chapter(found)
    return "\n".join(parts)


def _machines(machines: Sequence[Found]) -> str:
    rows = []
    for found in machines:
        verdicts = Counter(answer.verdict for answer in answers(found))
        rows.append([found.machine, precision_of(found.machine), *(str(verdicts[verdict]) for verdict in VERDICTS)])
    return tables.table(["", "computes in", *VERDICTS], rows)


def _chapter(found: Found) -> Iterator[str]:
    """All about one machine."""
    yield f"## {found.machine}\n\n{CHOICE} {precision_of(found.machine)} here.\n"
    held = [
        [answer.title, answer.where, _number(answer.limit, answer.unit), _number(answer.measured, answer.unit),
         answer.verdict]
        for answer in answers(found)
    ]  # fmt: skip
    yield "### What was asked for\n\n" + tables.table(["", "", "at most", "measured", ""], held)
    for model in reversed(found.models):
        yield f"### {MODELS[model].title[0].upper()}{MODELS[model].title[1:]}\n"
        for title, method, make in SECTIONS:
            if made := make(found, model):
                told = (f"#### {title}", method, made)
                yield "\n\n".join(part.rstrip("\n") for part in told if part) + "\n"
    yield "### Made with\n\n" + _made_with(found)


def best_known(machines: Sequence[Found]) -> Found:
    """The machine that answers most of what was asked for."""
    return max(machines, key=lambda found: sum(answer.measured is not None for answer in answers(found)))


def section(machines: Sequence[Found]) -> str:
    """What the README says, of the machine that answers most: the buyer's sentence, two tables, the plots."""
    if not machines or not (found := best_known(machines)).models:
        return "Nothing has been measured yet: `make bench`.\n"
    model = found.models[-1]
    best = found.best(model)
    peers = tables.beside_peers(found, model)
    swaps = tables.changes(found, model, skip=("copy of the pack", "copy of the pack, fp32"))
    pictures = [
        f"![{name}](docs/plots/{name}.png)"
        for name in ("beside_peers", "swap", "growth")
        if any(found.all(question=name, model=model))
    ]
    parts = [
        sentence(found, model, best) if best else "",
        f"A step with one adapter of rank 16, {MODELS[model].title}:\n",
        peers,
        f"Changing the style, {MODELS[model].title}:\n",
        swaps,
        LAZY,
        f"{CHOICE} {precision_of(found.machine)} here.\n",
        "\n".join(pictures) + "\n" if pictures else "",
        "[docs/benchmarks.md](docs/benchmarks.md) has the rest, how it was measured, and other machines.\n",
    ]
    return "\n".join(part for part in parts if part)


def sentence(found: Found, model: str, best: str) -> str:
    """The buyer's sentence: what a swap takes and what a step costs more, on our fastest backend."""
    swap = found.one(question="swap", model=model, contestant=best, case="resident")
    wanted = {"question": "step_time", "model": model, "contestant": best, "case": "1 of rank 16"}
    step = next(filter(None, (found.one(**wanted, latents=side) for side in reversed(found.latents(model)))), None)
    if swap is None or step is None or "ratio" not in step:
        return ""
    percent = (step["ratio"]["median"] - 1) * 100
    later = max(0.0, swap.get("later", {}).get("median", 0.0))
    return (
        f"**{tables.seconds(swap['median'])} to change the style, {tables.seconds(later)} more in the first step after "
        f"it, {percent:.1f} % a step** ({MODELS[model].title}, "
        f"{step['latents']}x{step['latents']} latents, one adapter of rank 16, {CONTESTANTS[best].title}; a step is "
        f"compared with the same graph without LoRA inputs). Measured on {step['machine']}.\n"
    )


def with_section(readme: str, made: str) -> str:
    """The README with the section in place of what is between the marks.

    Raises:
        SystemExit: the marks are missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the README lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def _made_with(found: Found) -> str:
    dates = sorted({line["date"] for line in found.lines})
    versions = {
        f"{name} {version}" for line in found.lines for name, version in (line.get("versions") or {}).items()
    }  # fmt: skip
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else ""
    return "".join(f"- {told}\n" for told in (", ".join(sorted(versions)), when) if told)


def _number(value: float | None, unit: str) -> str:
    return tables.NOTHING if value is None else f"{value:.3g} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--print", action="store_true", help="print the page, write nothing")
    asked = parser.parse_args()
    machines = on_machines(asked.results)
    if asked.print:
        print(document(machines))
        return
    from benchmarks.plots import write_plots

    (ROOT / "docs" / "benchmarks.md").write_text(document(machines), encoding="utf-8")
    for found in [best_known(machines)] if machines else []:
        for model in found.models[-1:]:
            write_plots(found, model, ROOT / "docs" / "plots")
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), section(machines)), encoding="utf-8")


if __name__ == "__main__":
    main()
