"""The parent's side: contestants as processes that take turns, one at a time.

A worker that waits for its turn is stopped (SIGSTOP), threads and all: nothing of it can spin, whatever its libraries
think of waiting. Contestants that do not fit in memory together run in groups, and the references are in each.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import AUTO, CONTESTANTS
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, machine, precision_of
from benchmarks.models import ROOT, Model
from benchmarks.peers import python_of


class Worker:
    """One contestant in a process of its own, stopped unless it is asked something."""

    def __init__(self, name: str, log: Path) -> None:
        """Start the process; nothing is opened yet.

        Raises:
            Cannot: its environment is not installed.
        """
        entry = CONTESTANTS[name]
        python = python_of(entry.environment)
        if not python.is_file():
            raise Cannot(f"the environment {entry.environment!r} is not installed (make bench-peers)")
        log.parent.mkdir(parents=True, exist_ok=True)
        apart = {"TORCHINDUCTOR_CACHE_DIR": str(log.parent / "inductor")}  # a killed compilation spoils only our own
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", f"benchmarks.contestants.{entry.module}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                start_new_session=True, env=os.environ | apart,
            )  # fmt: skip
        self.name, self.versions, self._log = name, {}, log
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            Cannot: the contestant has no way to do it.
            Failed: it tried and failed, or its process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"its process ended with {self._process.wait()} at {do}; see {self._log.name}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise Cannot(answer["cannot"])
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def open(self, model: Mapping[str, Any], threads: int, declared: str) -> float:
        """Open the model; returns seconds."""
        own = precision_of(machine())
        settings = {key: own if value == AUTO else value for key, value in CONTESTANTS[self.name].settings.items()}
        answer = self.ask("open", model=model, threads=threads, settings=settings, declared=declared)
        self.versions = answer["versions"]
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process and what it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def groups(names: Sequence[str], references: Sequence[str], model: Model, memory: float) -> Iterator[tuple[str, ...]]:
    """Split contestants so that each group fits in memory, the references in every one of them.

    Args:
        names: contestants, references among them or not.
        references: those that everybody is compared with.
        memory: bytes that a group may take; one contestant beside the references always may.
    """

    def weight(name: str) -> float:
        return CONTESTANTS[name].weight * model.parameters

    base = sum(map(weight, references))
    others = [name for name in names if name not in references]
    group: list[str] = []
    for name in others:
        if group and base + sum(map(weight, group)) + weight(name) > memory:
            yield (*references, *group)
            group = []
        group.append(name)
    if group or not others:
        yield (*references, *group)
