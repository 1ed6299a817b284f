"""What every question asks with: the settings of a run, and contestants that are open, as many as memory holds."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapter_files import Files, Spec, write_adapter
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, machine, precision_of
from benchmarks.models import Model, Places
from benchmarks.workers import Worker, groups
from lora_edge.arrays import FloatArray
from lora_edge.bundle import Bundle

SMALLEST = 8  # side of latents
DECLARED = Spec(16)  # changes every layer that the adapters of the peers' questions do
Multiplier = float | tuple[float, ...]
Chosen = tuple[tuple[Spec, Multiplier], ...]


class Player:
    """An open contestant and the adapters that it holds."""

    def __init__(self, worker: Worker, write: Any) -> None:
        self.worker, self._write = worker, write
        self._held: set[str] = set()
        self._active: Chosen | None = None
        self.moved: int | None = None  # bytes, by the last change

    @property
    def facts(self) -> dict[str, Any]:
        """What its lines say of it."""
        return {"versions": self.worker.versions}

    def load(self, key: str, files: Files) -> float:
        """Seconds of making an adapter resident."""
        return float(self.worker.ask("load", key=key, files=dict(files))["seconds"])

    def keep(self, key: str, files: Files) -> None:
        """Make an adapter resident unless it is."""
        if key not in self._held or CONTESTANTS[self.worker.name].single:
            self.load(key, files)
            self._held.add(key)

    def unload(self, key: str) -> None:
        self.worker.ask("unload", key=key)

    def activate(self, pairs: Sequence[tuple[str, Multiplier]]) -> dict[str, Any]:
        """Make adapters active by the keys that they were loaded under: `seconds`, and what else it tells."""
        self._active = None
        answer = self.worker.ask("activate", adapters=[list(pair) for pair in pairs])
        self.moved = answer["moved"]
        return answer

    def hold(self, chosen: Chosen) -> bool:
        """Load what is not resident and make it active; whether that changed anything."""
        if self._active == chosen:
            return False
        for spec, _ in chosen:
            self.keep(spec.name, self._write(spec))
        if chosen or self._held:
            self.activate([(spec.name, multiplier) for spec, multiplier in chosen])
        self._active = chosen
        return True

    def steps(self, latents: int, rows: int, count: int = 1) -> list[float]:
        """Seconds of each of so many steps."""
        return list(self.worker.ask("step", latents=latents, rows=rows, count=count)["seconds"])


@dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
        work: models, adapters and logs.
        rounds: that count, for a step of less than a second; slower ones take fewer.
        threads: of every contestant, 0 for their own choice.
        memory: bytes that contestants may take together.
        only: the names that take part; none for all.
    """

    work: Path
    rounds: int = 15
    threads: int = 0
    memory: float = 16e9
    only: tuple[str, ...] = ()
    _pool: dict[tuple[str, str], Player] = field(default_factory=dict)

    def takes_part(self, name: str, model: Model) -> bool:
        entry = CONTESTANTS[name]
        if entry.bf16 and precision_of(machine()) != "bf16":
            return False
        return (not self.only or name in self.only) and (not entry.models or model.name in entry.models)

    def chosen(self, names: Sequence[str], model: Model) -> tuple[str, ...]:
        """Those of the names that take part."""
        return tuple(name for name in names if self.takes_part(name, model))

    def groups(self, names: Sequence[str], references: Sequence[str], model: Model) -> Iterator[tuple[str, ...]]:
        return groups(self.chosen(names, model), self.chosen(references, model), model, self.memory)

    def adapter(self, model: Model, spec: Spec) -> Files:
        """The files of an adapter for a model."""
        places = Places(model, self.work)
        places.prepare("bundle")
        return write_adapter(spec, Bundle.open(places.bundle), places.folder / "adapters")

    def start(self, name: str, model: Model) -> tuple[Worker, dict[str, Any]]:
        """A fresh process, and what it is to be opened with; nothing is open yet.

        Raises:
            Cannot: its environment is not installed.
        """
        entry = CONTESTANTS[name]
        for need in ("model", *entry.needs):
            Places(model, self.work).prepare(need)
        described = {**model.described(self.work, entry.bundle), "highest_rank": DECLARED.rank}
        declared = self.adapter(model, DECLARED)["file"]
        worker = Worker(name, self.work / "logs" / f"{model.name}.{name}.log")
        return worker, {"model": described, "threads": self.threads, "declared": declared}

    def players(self, names: Sequence[str], model: Model) -> dict[str, Player | str]:
        """Open contestants, those that are open already among them; in place of one that cannot, why."""
        self._make_room(names, model)
        made: dict[str, Player | str] = {}
        for name in names:
            if (held := self._pool.get((model.name, name))) and held.worker.ended:
                self._close((model.name, name))
            try:
                if (model.name, name) not in self._pool:
                    worker, settings = self.start(name, model)
                    self._pool[model.name, name] = Player(worker, lambda spec: self.adapter(model, spec))
                    worker.open(**settings)
                made[name] = self._pool[model.name, name]
            except (Cannot, Failed) as reason:
                made[name] = str(reason)
                self._close((model.name, name))
        return made

    def close(self) -> None:
        for key in list(self._pool):
            self._close(key)

    def _make_room(self, names: Sequence[str], model: Model) -> None:
        def weight(others: Sequence[str]) -> float:
            return sum(CONTESTANTS[name].weight for name in others) * model.parameters

        for key in list(self._pool):
            here, name = key
            held = [other for place, other in self._pool if place == model.name]
            if here != model.name or (name not in names and weight({*held, *names}) > self.memory):
                self._close(key)

    def _close(self, key: tuple[str, str]) -> None:
        if player := self._pool.pop(key, None):
            player.worker.close()


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    """A run whose processes end with it, also when it is told to end (SIGTERM)."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield bench
    finally:
        bench.close()


def output(bench: Bench, player: Player, chosen: Chosen, latents: int) -> FloatArray:
    """What one step of two rows makes: [2, channels, latents, latents] float32."""
    player.hold(chosen)
    path = bench.work / "output.npy"
    player.worker.ask("output", latents=latents, rows=2, path=str(path))
    made: FloatArray = np.load(path)
    return made
