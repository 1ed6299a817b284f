"""Converts every attack under an audit hook and prints, as JSON, what each did.

python watch.py FOLDER: a process of its own, as an audit hook cannot be taken off again.
"""

import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from attacks import ATTACKS, GOOD

from lora_edge.tools.convert import convert

HARMLESS = {"mmap.__new__", "os.stat"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Every audited event but reading a file, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        reading = event == "open" and not (arguments[2] & WRITING)
        if self.on and not reading and event not in HARMLESS:
            self.seen.append(f"{event} {arguments!r}"[:200])


def outcome(source: Path, target: Path, watch: Watch) -> dict[str, Any]:
    """What one conversion did: the error, the events, and the bytes that python held at most."""
    watch.seen.clear()
    tracemalloc.start()
    watch.on = True
    try:
        convert(source, target)
        error, message = "", ""
    except Exception as refusal:
        error, message = type(refusal).__name__, str(refusal)
    finally:
        watch.on = False
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"error": error, "message": message, "events": list(watch.seen), "peak": peak}


def main(folder: Path) -> None:
    source, target = folder / "in.pt", folder / "out.safetensors"
    watch = Watch()
    source.write_bytes(GOOD)
    convert(source, target)  # imports what is imported late
    assert target.is_file()
    target.unlink()
    sys.addaudithook(watch)
    told = {}
    for name, make in ATTACKS.items():
        source.write_bytes(make())
        told[name] = {**outcome(source, target, watch), "left": [path.name for path in folder.iterdir()]}
        target.unlink(missing_ok=True)
    print(json.dumps({"attacks": told, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
