"""JSON objects from files, refused in one sentence where they are none."""

import json
from pathlib import Path
from typing import Any

from lora_edge.errors import LoraEdgeError


def read_object(path: Path, error: type[LoraEdgeError], optional: bool = False) -> dict[str, Any]:
    """A JSON object; {} for a file that is optional and not there.

    Raises:
        error: the file cannot be read, is not JSON, or is something else than an object.
    """
    if optional and not path.exists():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} cannot be read as JSON: {reason}") from reason
    if not isinstance(read, dict):
        raise error(f"{path} is not a JSON object")
    return read
