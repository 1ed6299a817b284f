"""Files that a package or a manifest names: below its own folder, or not opened."""

from pathlib import Path, PurePosixPath


def inside(folder: Path, name: str) -> Path | None:
    """A file by its name relative to a folder; None where that leads out of the folder, or no file can have it."""
    parts = PurePosixPath(name).parts
    try:
        path = folder.joinpath(*parts)
        path.exists()  # refuses names that are too long
        below = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return None
    return path if below and parts and ".." not in parts else None
