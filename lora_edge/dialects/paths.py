"""What dialects share: the ways in which a layer's own path is written before any prefix."""

from collections.abc import Iterator

_LEVEL = "text_model."


def paths(path: str) -> Iterator[str]:
    """A path as slots name it and, for text encoders, without the leading `text_model.` that transformers 5 dropped."""
    yield path
    if path.startswith(_LEVEL):
        yield path.removeprefix(_LEVEL)


def flat(path: str) -> str:
    """A path with every dot turned into an underscore."""
    return path.replace(".", "_")
