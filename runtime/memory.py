"""How much memory there is, how much of it the process has taken, and what of it can go back."""

import ctypes
import os
import re
import sys
from pathlib import Path

MAPS, SMAPS = Path("/proc/self/maps"), Path("/proc/self/smaps")  # proc_pid_maps(5), proc_pid_smaps(5)
MADV_DONTNEED = 4  # of Linux, madvise(2)


def peak_bytes() -> int | None:
    """Largest resident size so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def physical_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def forget_pages(folder: Path) -> None:
    """Let go of what libraries have read of a folder's files through maps and nobody has written to.

    The system has it at hand and gives it again when it is asked for. Where weights were laid out anew, nobody asks.
    Linux only; elsewhere, and where a process may not read its own maps, nothing happens.
    """
    try:
        untouched = _untouched(os.path.realpath(folder) + os.sep)
    except OSError:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, end in untouched:
        advise(start, end - start, MADV_DONTNEED)


def _untouched(folder: str) -> list[tuple[int, int]]:
    """First and last address of each map of a file in a folder of which no page was written to."""
    found = [head for line in _lines(MAPS) if (head := _HEAD.match(line)) and head["path"].startswith(folder)]
    written = _written() if any("w" in head["may"] for head in found) else set()
    return [(int(head["first"], 16), int(head["last"], 16)) for head in found if head["first"] not in written]


def _written() -> set[str]:
    """First addresses of maps that hold pages of the process's own; it takes the system a while to tell."""
    made, first = set(), ""
    for line in _lines(SMAPS):
        if head := _HEAD.match(line):
            first = head["first"]
        elif line.startswith("Anonymous:") and line.split()[1] != "0":
            made.add(first)
    return made


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


_HEAD = re.compile(r"(?P<first>[0-9a-f]+)-(?P<last>[0-9a-f]+) (?P<may>[-rwxsp]{4}) [0-9a-f]+ \S+ \d+\s+(?P<path>.*)")
