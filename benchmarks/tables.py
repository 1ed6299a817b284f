"""Markdown tables from results."""

from collections.abc import Sequence

from benchmarks.contestants import CONTESTANTS
from benchmarks.found import Found, Line

NOTHING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; none without rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" if rows else ""


def milliseconds(line: Line | None) -> str:
    """Median, to three digits, in the unit that suits it."""
    if line is None:
        return NOTHING
    return seconds(line["median"])


def seconds(value: float) -> str:
    """`1.23 s`, `45.6 ms`, `0.0123 ms`."""
    return f"{_digits(value)} s" if value >= 1 else f"{_digits(value * 1e3)} ms"


def times(line: Line | None, interval: bool = False) -> str:
    """`1.03 x`, with the interval of the median where it is asked for."""
    if line is None or "ratio" not in line:
        return NOTHING
    told = f"{line['ratio']['median']:.3f} x"
    low, high = line["ratio"]["interval"]
    return f"{told} ({low:.3f} to {high:.3f})" if interval else told


def gigabytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"


def against_plain(found: Found, model: str, question: str = "step_time") -> str:
    """Cases by backends and latents: ratios to the plain graph."""
    wanted = {"question": question, "model": model}
    names = found.contestants("ours", "wider", **wanted)
    lines = [line for line in found.all(**wanted) if line["contestant"] in names]
    cases = list(dict.fromkeys(line["case"] for line in lines))
    sides = sorted({line["latents"] for line in lines})
    columns = [(name, side) for name in names for side in sides]
    rows = [
        [case, *(times(found.one(**wanted, contestant=name, case=case, latents=side), True) for name, side in columns)]
        for case in cases
    ]
    return table(["adapters", *(f"{CONTESTANTS[name].title}, {side}x{side}" for name, side in columns)], rows)


def ranks(found: Found, model: str) -> str:
    """The same of adapters of many ranks."""
    return against_plain(found, model, "ranks")


def beside_peers(found: Found, model: str) -> str:
    """Contestants by latents: a step and its ratio to ours."""
    wanted = {"question": "beside_peers", "model": model}
    sides = found.latents(model)
    rows = []
    for name in found.contestants(**wanted):
        lines = [found.one(**wanted, contestant=name, latents=side) for side in sides]
        error = next((f"{line['error']:.2g}" for line in lines if line and "error" in line), NOTHING)
        rows.append([CONTESTANTS[name].title, *(f"{milliseconds(line)}, {times(line)}" for line in lines), error])
    return table(["", *(f"{side}x{side}" for side in sides), "difference from ours"], rows)


CHANGES = (  # question, case, heading
    ("swap", "file", "from a file"),
    ("swap", "pack", "from a pack"),
    ("swap", "copy of the pack", "copy of the pack"),
    ("swap", "pack, fp32", "from an fp32 pack"),
    ("swap", "copy of the pack, fp32", "copy of that"),
    ("swap", "resident", "resident"),
    ("swap", "mix of two", "mix of two"),
    ("multiplier", "multiplier", "multiplier"),
)

LATER = ("resident", "pack, fp32")  # whose step after it is told, the first that was measured


def changes(found: Found, model: str, skip: Sequence[str] = ()) -> str:
    """Contestants by changes: seconds; then what a step after a swap takes longer, and what a multiplier moves."""
    shown = [change for change in CHANGES if change[1] not in skip]
    rows = []
    for name in found.contestants(question="swap", model=model):
        line = next(
            filter(None, (found.one(question="swap", model=model, contestant=name, case=case) for case in LATER)), None
        )
        told = seconds(max(0.0, line["later"]["median"])) if line and "later" in line else NOTHING
        change = found.one(question="multiplier", model=model, contestant=name, case="multiplier")
        moved = f"{change['moved'] / 1e3:.1f} kB" if change and change.get("moved") else NOTHING
        later = [told, *([moved] if not skip else [])]
        cells = (_change(found, model, question, name, case) for question, case, _ in shown)
        rows.append([CONTESTANTS[name].title, *cells, *later])
    return table(["", *(heading for _, _, heading in shown), *["later", *(["moved"] if not skip else [])]], rows)


def _change(found: Found, model: str, question: str, name: str, case: str) -> str:
    line = found.one(question=question, model=model, contestant=name, case=case)
    return milliseconds(line) + ("*" if line and line.get("lazy") else "")


def batches(found: Found, model: str) -> str:
    """Sizes of batches by backends: images a second, and the ratio to the batch without adapter."""
    wanted = {"question": "batches", "model": model}
    names = found.contestants(**wanted)
    cases = list(dict.fromkeys(line["case"] for line in found.all(**wanted)))

    def cell(line: Line | None) -> str:
        return NOTHING if line is None else f"{line['images_per_second']:.3g}, {times(line)}"

    rows = [[case, *(cell(found.one(**wanted, contestant=name, case=case)) for name in names)] for case in cases]
    return table(["images: adapters", *(CONTESTANTS[name].title for name in names)], rows)


def memory(found: Found, model: str) -> str:
    """Contestants: peak and resident memory of an image without and with an adapter, and opening."""
    rows = []
    for name in found.contestants(model=model):
        cells = []
        for case in ("no adapter", "1 of rank 16"):
            line = found.one(question="memory", model=model, contestant=name, case=case)
            resident = gigabytes(line["resident"]) if line else NOTHING
            cells += [f"{gigabytes(line['median']) if line else NOTHING}, {times(line)}", resident]
        opening = found.one(question="opening", model=model, contestant=name)
        rows.append([CONTESTANTS[name].title, *cells, f"{milliseconds(opening)}, {times(opening)}"])
    head = ["", "peak", "after it", "peak, 1 of rank 16", "after it", "to the first step"]
    return table(head, [row for row in rows if any(cell.strip(f"{NOTHING}, ") for cell in row[1:])])


def quantized(found: Found, model: str) -> str:
    """Ours in fp32 and smaller: memory of the weights, how near the output is, and a step."""
    wanted = {"question": "quantized", "model": model}
    rows = []
    for name in found.contestants(**wanted):
        weights = found.one(**wanted, contestant=name, case="weights in memory")
        psnr = found.one(**wanted, contestant=name, case="PSNR")
        step = found.one(**wanted, contestant=name, case="1 of rank 16")
        told = f"{gigabytes(weights['median'])}, {times(weights)}" if weights else NOTHING
        near = f"{psnr['median']:.1f} dB" if psnr else NOTHING
        rows.append([CONTESTANTS[name].title, told, near, f"{milliseconds(step)}, {times(step)}"])
    return table(["", "weights in memory", "output", "a step, 1 of rank 16"], rows)


def disk(found: Found, model: str) -> str:
    """What lies on disk."""
    lines = list(found.all(question="disk", model=model))
    return table(["", "bytes"], [[line["case"], gigabytes(line["median"])] for line in lines])


def cannot(found: Found, model: str) -> str:
    """What contestants had no way to do, and why, each said once."""
    said: dict[tuple[str, str], list[str]] = {}
    for line in found.all(model=model):
        if "cannot" in line:
            said.setdefault((line["contestant"], line["cannot"]), []).append(f"{line['question']}: {line['case']}")
    told = ((CONTESTANTS[name].title, "; ".join(dict.fromkeys(cases)), why) for (name, why), cases in said.items())
    return "".join(f"- {title}: {cases}: {why}.\n" for title, cases, why in told)


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
