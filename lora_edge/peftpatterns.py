"""Numbers by the paths of modules, as PEFT looks them up (peft, utils/other.py, get_pattern_key).

A key is a regular expression for a whole path or for its end after a dot, and the first key that matches counts. Nearly
all keys are plain names, of which a file may have one for each module; those are looked up and not tried in turn. In
them a dot means a dot, and `^` before one the whole path.
"""

import re
from collections.abc import Iterator, Mapping

MAX_EXPRESSIONS = 64  # that are no plain names, each tried on each module
MAX_LENGTH = 200  # characters of one; brackets in brackets take the most memory to read, 2 kB each

_PLAIN = re.compile(r"\^?[\w-]+(\.[\w-]+)*")
_QUANTIFIER = re.compile(r"[*+?{]")


class Patterns:
    """Numbers by key, in the order of the settings.

    Args:
        items: key -> number.

    Raises:
        ValueError: a key that is no regular expression, or might take long; the message goes on from the key's owner.
    """

    def __init__(self, items: Mapping[str, float]) -> None:
        self._values = tuple(items.values())
        self._plain = {key: place for place, key in enumerate(items) if _PLAIN.fullmatch(key)}
        others = [(place, key) for place, key in enumerate(items) if key not in self._plain]
        if len(others) > MAX_EXPRESSIONS:
            raise ValueError(f"has {len(others)} regular expressions; at most {MAX_EXPRESSIONS} are read there")
        self._others = tuple((place, expression(rf"(.*\.)?({key})$", key)) for place, key in others)

    def find(self, module: str) -> float | None:
        """The number of a module's path, None where no key matches."""
        last = len(self._values)
        first = min((self._plain.get(key, last) for key in (f"^{module}", *_ends(module))), default=last)
        tried = (place for place, pattern in self._others if place < first and pattern.match(module))
        found = next(tried, first)
        return self._values[found] if found < last else None


def expression(text: str, said: str) -> re.Pattern[str]:
    """A regular expression that cannot take long; said: the part of it that a file says. Raises as `Patterns`."""
    if len(said) > MAX_LENGTH:
        raise ValueError(f"has a regular expression of {len(said)} characters; at most {MAX_LENGTH} are read there")
    if len(_QUANTIFIER.findall(said)) > 1:  # two may take exponential time to match
        raise ValueError(f"has {said!r}; at most one of * + ? {{ is read there")
    try:
        re.compile(said)  # by itself, so that it cannot close a bracket of ours
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise ValueError(f"has {said!r}, which is no regular expression") from None


def _ends(module: str) -> Iterator[str]:
    """The path and what is after each of its dots."""
    yield module
    while "." in module:
        module = module.partition(".")[2]
        yield module
