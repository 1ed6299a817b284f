"""Looking results up: lines by question, model, contestant, case and latents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.models import MODELS

Line = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The lines of all result files."""

    lines: Sequence[Line]

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

    @property
    def machines(self) -> list[str]:
        """Those that anything was measured on."""
        return list(dict.fromkeys(line["machine"] for line in self.lines))

    def latents(self, model: str) -> list[int]:
        """Sides of latents that steps of a model were timed at, from small to large."""
        sides = (line.get("latents", 0) for line in self.all(question="beside_peers", model=model))
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


def delay(line: Line) -> float:
    """Seconds of a change, with what the first step after it takes longer, wherever the program does the work."""
    return float(line["median"]) + put_off(line)


def put_off(line: Line) -> float:
    """Seconds by which the first step after a change takes longer, where the change itself does not count them."""
    later = 0.0 if line.get("lazy") else line.get("later", {}).get("median", 0.0)
    return max(0.0, float(later))
