"""What the results are held to: each bar a limit, where to look, and whether it is met."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.found import Found, Line, delay

MODEL = "sd15"
SIDES = (32, 64)
FIRST_EXPORT = {"seconds": 438.8, "peak_bytes": 9558196224}  # of the first version
FIRST_MACHINE = "AMD EPYC avx512f avx512_bf16 avx512_vnni, 2 cores, 24 GiB, Linux"  # which these seconds are of
VERDICTS = ("met", "not met", "not measured")
OWN, BORROWED = "of its own", "on our graph"


@dataclass(frozen=True)
class Answer:
    """One bar, answered.

    Attributes:
        title: what is asked.
        where: contestant and size.
        limit: at most so much.
        measured: what the results say; None where nothing was measured.
        unit: of both: "x", "ms".
    """

    title: str
    where: str
    limit: float
    measured: float | None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        met, missed, unknown = VERDICTS
        if self.measured is None:
            return unknown
        return met if self.measured <= self.limit else missed


def answers(found: Found) -> Iterator[Answer]:
    """All bars, in the order in which they are stated, as one machine answers them."""
    yield from _steps(found)
    yield from _peers(found)
    yield from _swaps(found)
    yield from _memory(found)
    yield from _quantized(found)
    yield from _export(found)


STEPS = (  # case, limit, contestants
    ("no adapter", 1.02, ("lora-edge-ort", "lora-edge-ov")),
    ("1 of rank 128", 1.06, ("lora-edge-ort", "lora-edge-ov")),
    ("3 of rank 32", 1.06, ("lora-edge-ort", "lora-edge-ov")),
    ("10 of rank 16", 1.08, ("lora-edge-ort", "lora-edge-ov")),
    ("LoCon 32, conv 16", 1.08, ("lora-edge-ort-lowrank", "lora-edge-ov-lowrank")),
)


def _steps(found: Found) -> Iterator[Answer]:
    for case, limit, names in STEPS:
        for name in names:
            for side in SIDES:
                line = found.one(question="step_time", model=MODEL, contestant=name, case=case, latents=side)
                where = f"{CONTESTANTS[name].title}, {side}x{side}"
                yield Answer(f"a step with {case}, over the plain graph's", where, limit, _ratio(line))


def _peers(found: Found) -> Iterator[Answer]:
    for side in SIDES:
        here = {"question": "beside_peers", "model": MODEL, "latents": side}
        ratios = {name: _ratio(found.one(**here, contestant=name)) for name in found.contestants("peer", **here)}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        fastest = min(known, key=known.__getitem__, default=None)
        title = CONTESTANTS[fastest].title if fastest else "any peer"
        over = 1 / known[fastest] if fastest else None
        yield Answer("our step with 1 of rank 16, over the fastest peer's", f"{title}, {side}x{side}", 1.02, over)
        eager = known.get("diffusers-fp32")
        where = f"{CONTESTANTS['diffusers-fp32'].title}, {side}x{side}"
        yield Answer("the same, over eager diffusers'", where, 0.5, 1 / eager if eager else None)


SWAPS = (  # title, question, our case, who of ours, the peers' case or none, milliseconds at most
    ("a swap to a resident adapter", "swap", "resident", "", "resident", 1.0),
    ("a multiplier change", "multiplier", "multiplier", "", "multiplier", 0.1),
    ("a swap from a pack", "swap", "pack", "", "file", None),
    ("a swap from an fp32 pack", "swap", "pack, fp32", "", "", None),
    ("a swap from a mapped pack", "swap", "pack, fp32", "-mapped", "file", None),
)


def _swaps(found: Found) -> Iterator[Answer]:
    best = found.best(MODEL) or "lora-edge-ort"
    for title, question, case, who, theirs, limit in SWAPS:
        ours = best + who
        line = found.one(question=question, model=MODEL, contestant=ours, case=case)
        where = CONTESTANTS[ours].title
        if limit is None:
            yield Answer(f"{title}, over a copy of its bytes", where, 1.2, _ratio(line))
        else:
            yield Answer(title, where, limit, line["median"] * 1e3 if line else None, "ms")
        for kind in (OWN, BORROWED) if theirs else ():
            for what, seconds in (("", _call), (" and what it puts off", delay)):
                name, fastest = _fastest(found, question, theirs, kind, seconds)
                over = seconds(line) / fastest if line and fastest else None
                yield Answer(f"{title}{what}, over the fastest peer's ({kind})", name, 1 / 20, over)


def _call(line: Line) -> float:
    """Seconds of the change alone; of programs that make it in the next step, with that."""
    return float(line["median"])


def _fastest(
    found: Found, question: str, case: str, kind: str, seconds: Callable[[Line], float]
) -> tuple[str, float | None]:
    """Title and seconds of the fastest peer."""
    wanted: dict[str, Any] = {"question": question, "model": MODEL, "case": case}
    names = [
        name
        for name in found.contestants("peer", **wanted)
        if CONTESTANTS[name].borrows == (kind == BORROWED)
    ]  # fmt: skip
    lines = {name: line for name in names if (line := found.one(**wanted, contestant=name))}
    fastest = min(lines, key=lambda name: seconds(lines[name]), default=None)
    return (CONTESTANTS[fastest].title, seconds(lines[fastest])) if fastest else ("any peer", None)


def _memory(found: Found) -> Iterator[Answer]:
    for name in ("lora-edge-ort", "lora-edge-ov"):
        for case in ("no adapter", "1 of rank 16"):
            line = found.one(question="memory", model=MODEL, contestant=name, case=case)
            title = f"peak memory of a 512x512 image with {case}, over the plain graph's"
            yield Answer(title, CONTESTANTS[name].title, 1.10, _ratio(line))


QUANTIZED = (("lora-edge-ort-int8", 0.45, 35.0), ("lora-edge-ort-int4", 0.30, 28.0))


def _quantized(found: Found) -> Iterator[Answer]:
    for name, memory, psnr in QUANTIZED:
        where = CONTESTANTS[name].title
        line = found.one(question="quantized", model=MODEL, contestant=name, case="weights in memory")
        yield Answer("weights in memory, over those in fp32", where, memory, _ratio(line))
        line = found.one(question="quantized", model="emoji", contestant=name, case="PSNR")
        yield Answer("noise of the output, below its range", where, -psnr, -line["median"] if line else None, "dB")


def _export(found: Found) -> Iterator[Answer]:
    for key, what in (("seconds", "time"), ("peak_bytes", "peak memory")):
        alike = key in found.export and (key != "seconds" or found.machine == FIRST_MACHINE)
        measured = found.export[key] / FIRST_EXPORT[key] if alike else None
        yield Answer(f"{what} of the export, over the first version's", "SD 1.5's size", 0.5, measured)


def _ratio(line: Line | None) -> float | None:
    return line["ratio"]["median"] if line and "ratio" in line else None
