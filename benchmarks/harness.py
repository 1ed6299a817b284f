"""Turns, medians and JSON lines: what every question is measured with.

Machines are shared and drift, so nothing is told by a single run. Contestants take turns, round by round, in an order
that rotates; a ratio is made within a round, of two turns a few seconds apart; what counts is the median over rounds,
beside its quartiles and a bootstrap interval.
"""

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

RESAMPLES = 2000  # of the bootstrap
T = TypeVar("T")


class Failed(Exception):
    """A contestant could not do what others can; the message says what it said."""


def in_turns(
    turns: Mapping[Any, Callable[[], T]], rounds: int, title: str = "", warm: int = 1
) -> tuple[dict[Any, list[T]], dict[Any, str]]:
    """Let everybody take turns.

    Args:
        turns: whoever -> takes one turn, returns what was measured.
        rounds: that count.
        title: of the progress bar.
        warm: rounds before them that do not count.

    Returns:
        Whoever -> one of what was measured per round, in the order of rounds; and those who `Failed` on the way -> why.
    """
    names = list(turns)
    made: dict[Any, list[T]] = {name: [] for name in names}
    lost: dict[Any, str] = {}
    with tqdm(total=(warm + rounds) * len(names), desc=title, mininterval=5, leave=False) as bar:
        for index in range(-warm, rounds):
            for place in range(len(names)):
                name = names[(place + index) % len(names)]
                bar.update()
                if name in lost:
                    continue
                try:
                    value = turns[name]()
                except Failed as reason:
                    lost[name] = str(reason)
                    del made[name]
                    continue
                if index >= 0:
                    made[name].append(value)
    return made, lost


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, and how many values there are; five digits each."""
    low, high = np.quantile(values, [0.25, 0.75])
    return {"median": _short(statistics.median(values)), "quartiles": [_short(low), _short(high)], "n": len(values)}


def ratio(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The spread of what was measured over what the reference measured in the same round.

    `interval` is where the median's 95 % lie by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).
    """
    ratios = np.asarray(values, float) / np.asarray(reference, float)
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {**spread(ratios.tolist()), "interval": [_short(low), _short(high)]}


@dataclass
class Line:
    """One measurement, a line of `results/*.jsonl`.

    Attributes:
        question: name of the file in `questions/`.
        model: `emoji`, `quarter`, `sd15`.
        contestant: a name in `contestants.CONTESTANTS`.
        case: what it did, in words that the question chose.
        unit: `s`, `bytes`, `images/s`.
        values: one per round; the file gets their median and quartiles.
        reference: values of the same rounds that the ratio is made with; none for no ratio.
        against: whose values these are, `contestant: case`.
        facts: all else, such as `latents`, `rows`, `rank`, and the contestant's `versions`.
    """

    question: str
    model: str
    contestant: str
    case: str
    unit: str
    values: Sequence[float]
    reference: Sequence[float] = ()
    against: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        who = {"question": self.question, "model": self.model, "contestant": self.contestant, "case": self.case}
        made = {**who, **self.facts, "unit": self.unit, **spread(self.values)}
        if len(self.reference):
            made |= {"ratio": ratio(self.values, self.reference), "against": self.against}
        return {**made, "machine": machine(), "date": datetime.now(UTC).date().isoformat()}


def unable(question: str, model: str, contestant: str, case: str, why: str) -> dict[str, Any]:
    """The line of what a contestant cannot do, which is an answer too."""
    who = {"question": question, "model": model, "contestant": contestant, "case": case}
    return {**who, "cannot": why, "machine": machine(), "date": datetime.now(UTC).date().isoformat()}


@cache
def machine() -> str:
    """The processor, its cores and the memory; nothing that names the machine."""
    return f"{_processor()}, {os.cpu_count()} cores, {_memory():.0f} GiB, {platform.system()}"


def precision_of(machine: str) -> str:
    """What programs that have a choice compute in on a machine: "bf16" where its processor has that, or "fp32"."""
    return "bf16" if "bf16" in machine else "fp32"


def folder_of(machine: str) -> str:
    """The folder of a machine's results."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def merged(kept: Iterable[Mapping[str, Any]], made: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines of an earlier run with those of a later one in place of the same: contestant, case and latents."""
    lines = {}
    for line in (*kept, *made):
        lines[line["contestant"], line["case"], line.get("latents")] = line
    return list(lines.values())


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, none where there is none; of all files of a folder, by file name."""
    if path.is_dir():
        return [line for file in sorted(path.glob("*.jsonl")) for line in read_lines(file)]
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = named.get("flags", "")
    extra = [flag for flag in ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if flag in flags]
    extra = extra or [flag for flag in ("avx2",) if flag in flags]
    return " ".join([named.get("model name", platform.processor() or platform.machine()), *extra])


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):
        return 0.0


def _short(number: float) -> float:
    return float(f"{number:.5g}")
