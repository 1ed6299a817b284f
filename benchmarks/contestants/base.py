"""The worker's side: a contestant answers requests, JSON lines on its standard input, one line each.

Workers run in environments of their own, which have numpy and little else; this file imports nothing more.

    open      what model, how many threads -> its versions
    load      an adapter becomes resident          (timed)
    activate  these adapters, these multipliers    (timed)
    unload    an adapter is put away
    step      UNet calls of one guidance step      (timed, each)
    output    one such call, written to a file
    image     a whole image                        (timed)
    copy      a file's bytes into fresh memory     (timed)
    memory    resident bytes now and at the peak
"""

import json
import mmap
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

TIMESTEP = 500
PROMPT = "a cat"
SPARE = 64 << 20  # bytes
NEW = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


class Cannot(Exception):
    """What a contestant has no way to do; the message says why, for a table's footnote."""


class Contestant:
    """One program that is measured.

    Attributes:
        distributions: packages whose versions are told.
        form: which of an adapter's files it reads: `file`, `pack`, `onnx_adapter`.
        model: paths by what lies there, and the sizes that inputs need (`benchmarks.models.Model.described`).
        threads: of one run; 0 is the program's own choice.
        settings: of `benchmarks.contestants.CONTESTANTS`.
        declared: an adapter that changes every layer that any later one will, for programs that must know beforehand.
    """

    distributions: ClassVar[tuple[str, ...]] = ()
    form: ClassVar[str] = "file"

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        self.model, self.threads, self.settings, self.declared = model, threads, settings, declared

    def load(self, path: str) -> Any:
        """Make an adapter resident; what is returned, `activate` is given."""
        raise Cannot("takes no adapters")

    def unload(self, handle: Any) -> None:
        """Put an adapter away."""

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        """Make these the adapters of the next steps, each with its multiplier or one per row."""
        if adapters:
            raise Cannot("takes no adapters")

    def moved(self) -> int | None:
        """Bytes that the last change copied; None where the program does not tell."""
        return None

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        """Run the UNet once; returns what it made, as the program gives it."""
        raise NotImplementedError

    def times(self, inputs: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Seconds of each of so many steps."""
        made = []
        for _ in range(count):
            start = time.perf_counter()
            self.step(inputs)
            made.append(time.perf_counter() - start)
        return made

    def image(self, latents: int, steps: int) -> None:
        """A whole image: text, steps with guidance, decoding."""
        raise Cannot("has no way to a whole image")


def inputs_of(model: Mapping[str, Any], latents: int, rows: int) -> dict[str, np.ndarray]:
    """The same for everybody: sample [rows, channels, latents, latents], states [rows, tokens, context], float32."""
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((rows, model["channels"], latents, latents), np.float32),
        "timestep": np.array([TIMESTEP], np.float32),
        "encoder_hidden_states": random.standard_normal((rows, model["tokens"], model["context"]), np.float32),
    }


def as_wanted(inputs: Mapping[str, np.ndarray], ports: Iterable[Any]) -> dict[str, np.ndarray]:
    """The inputs of an onnxruntime session's ports, in their types."""
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    return {port.name: np.asarray(inputs[port.name], types[port.type]) for port in ports}


class Server:
    """Answers requests with one contestant."""

    def __init__(self, kind: type[Contestant]) -> None:
        self._kind = kind
        self._held: dict[str, Any] = {}
        self._contestant: Contestant | None = None

    @property
    def contestant(self) -> Contestant:
        assert self._contestant is not None, "open comes first"
        return self._contestant

    def open(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> Any:
        seconds = _timed(lambda: setattr(self, "_contestant", self._kind(model, threads, settings, declared)))
        return {"seconds": seconds, "versions": {name: version(name) for name in self._kind.distributions}}

    def load(self, key: str, files: Mapping[str, str]) -> Any:
        path = files[self._kind.form]
        _find_pages()
        return {"seconds": _timed(lambda: self._held.__setitem__(key, self.contestant.load(path)))}

    def unload(self, key: str) -> Any:
        self.contestant.unload(self._held.pop(key))

    def activate(self, adapters: Sequence[tuple[str, Any]]) -> Any:
        pairs = [(self._held[key], multiplier) for key, multiplier in adapters]
        return {"seconds": _timed(lambda: self.contestant.activate(pairs)), "moved": self.contestant.moved()}

    def step(self, latents: int, rows: int, count: int) -> Any:
        return {"seconds": self.contestant.times(self._inputs(latents, rows), count)}

    def output(self, latents: int, rows: int, path: str) -> Any:
        np.save(path, np.asarray(self.contestant.step(self._inputs(latents, rows)), np.float32))

    def image(self, latents: int, steps: int) -> Any:
        return {"seconds": _timed(lambda: self.contestant.image(latents, steps))}

    def copy(self, path: str) -> Any:
        """What reading a file that is in the page cache takes at least, into memory as new as that of an adapter."""
        _find_pages()
        return {"seconds": _timed(lambda: _copied(path))}

    def memory(self) -> Any:
        return {"resident": _resident(), "peak": _peak()}

    def _inputs(self, latents: int, rows: int) -> Mapping[str, np.ndarray]:
        if (latents, rows) not in self._made:
            self._made[latents, rows] = inputs_of(self.contestant.model, latents, rows)
        return self._made[latents, rows]

    @cached_property
    def _made(self) -> dict[tuple[int, int], Mapping[str, np.ndarray]]:
        return {}


def serve(kind: type[Contestant]) -> None:
    """Answer until the input ends. What libraries print goes to standard error, out of the way of the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = Server(kind)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request) or {}
        except Cannot as reason:
            answer = {"cannot": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def _copied(path: str) -> mmap.mmap:
    """A file's bytes in pages that the process has never used, asked for at once: the fastest way to new ones."""
    with Path(path).open("rb", buffering=0) as file:
        room = mmap.mmap(-1, os.fstat(file.fileno()).st_size, flags=NEW)
        view = memoryview(room)
        while view and (count := file.readinto(view)):
            view = view[count:]
    return room


def _find_pages() -> None:
    """Take memory and give it back: a virtual machine's host may have to find pages that were free for long, which
    takes ten times as long as all else that is done with them, and is none of the contestants' doing."""
    mmap.mmap(-1, SPARE, flags=NEW).close()


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _resident() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return _peak()
    named = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(named["VmRSS"].split()[0]) * 1024
