"""How much memory the process has taken."""

import sys


def peak_bytes() -> int | None:
    """Largest resident size so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
