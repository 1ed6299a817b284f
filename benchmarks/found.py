"""Looking results up: lines by machine, question, model, contestant, case and latents."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.harness import read_lines
from benchmarks.models import MODELS

Line = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What was measured on one machine.

    Attributes:
        lines: of all its result files.
        machine: what it is.
        export: what `benchmarks/export_sd15.py` told, if it was run there.
    """

    lines: Sequence[Line]
    machine: str = ""
    export: Line = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Found":
        """The results of a machine from its folder."""
        lines, export = read_lines(folder), folder / "export_sd15.json"
        told = json.loads(export.read_text(encoding="utf-8")) if export.is_file() else {}
        return cls(lines, next((line["machine"] for line in lines), ""), told)

    def all(self, **wanted: Any) -> Iterator[Line]:
        """Lines that have these values; those of contestants that are no longer listed are left out."""
        return (
            line
            for line in self.lines
            if line["contestant"] in ("", *CONTESTANTS) and all(line.get(key) == value for key, value in wanted.items())
        )

    def one(self, **wanted: Any) -> Line | None:
        """The last measured of them; None if there is none."""
        return next(reversed([line for line in self.all(**wanted) if "median" in line]), None)

    @property
    def models(self) -> list[str]:
        """Models that were measured, from small to large."""
        return [name for name in MODELS if any(self.all(model=name))]

    def latents(self, model: str) -> list[int]:
        """Sides of latents that steps of a model were timed at, from small to large."""
        timed = (self.all(question=question, model=model) for question in ("beside_peers", "step_time"))
        sides = (line.get("latents", 0) for lines in timed for line in lines)
        return sorted({*sides} - {0})

    def contestants(self, *roles: str, **wanted: Any) -> list[str]:
        """Names that were measured, in the order of the list."""
        here = {line["contestant"] for line in self.all(**wanted) if "median" in line}
        return [name for name, entry in CONTESTANTS.items() if name in here and (not roles or entry.role in roles)]

    def best(self, model: str) -> str | None:
        """Our backend that others were compared with: the fastest, at the largest latents."""
        for latents in reversed(self.latents(model)):
            for line in self.all(question="beside_peers", model=model, latents=latents):
                if "against" in line:
                    return str(line["against"].split(":")[0])
        return None


def on_machines(results: Path) -> list[Found]:
    """The results of every machine, by the names of their folders."""
    return [Found.read(folder) for folder in sorted(results.glob("*/"))]


def delay(line: Line) -> float:
    """Seconds of a change, with what the first step after it takes longer, wherever the program does the work."""
    return float(line["median"]) + put_off(line)


def put_off(line: Line) -> float:
    """Seconds by which the first step after a change takes longer, where the change itself does not count them."""
    later = 0.0 if line.get("lazy") else line.get("later", {}).get("median", 0.0)
    return max(0.0, float(later))
