"""Tables and lists for people. Names come from strangers' files, so nothing that steers a terminal gets through."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

GAP = "  "
MANY = 12  # entries of a list that are written out


def plain(text: object, most: int = 0) -> str:
    """One printable line; longer than `most` letters is cut, 0 cuts nothing."""
    line = " ".join(str(text).split())
    line = "".join(letter if letter.isprintable() else "�" for letter in line)
    return line if not most or len(line) <= most else f"{line[: most - 1]}…"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], most: int = 48) -> str:
    """Aligned columns under their heads; columns that are empty in every row are left out."""
    cells = [[plain("" if value is None else value, most) for value in row] for row in rows]
    kept = [number for number in range(len(heads)) if any(row[number] for row in cells)]
    lines = [[heads[number] for number in kept], *([row[number] for number in kept] for row in cells)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        GAP.join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def group(title: str, items: Mapping[str, Any]) -> str:
    """A title and its entries, aligned and indented; "" where there are none."""
    told = {name: text for name, value in items.items() if (text := _said(value))}
    widest = max(map(_width, told), default=0)
    lines = [f"{GAP}{name}{' ' * (widest - _width(name))}{GAP}{text}" for name, text in told.items()]
    return "\n".join([title, *lines]) if lines else ""


def counts(counted: Mapping[str, int]) -> str:
    """As in `8 (120), 16 (4)`; a single one without its count."""
    if len(counted) == 1:
        return plain(next(iter(counted)))
    return listed([f"{name} ({count})" for name, count in counted.items()])


def listed(values: Sequence[object]) -> str:
    """With commas, and how many more there are."""
    more = f" and {len(values) - MANY} more" if len(values) > MANY else ""
    return ", ".join(plain(value) for value in values[:MANY]) + more


def size(count: int) -> str:
    """Bytes as people write them."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def span(numbers: Sequence[int]) -> str:
    """`8`, `4-32`, or nothing."""
    return "-".join(map(str, sorted({min(numbers), max(numbers)}))) if numbers else ""


def _said(value: Any) -> str:
    if value is None:
        return ""
    return listed(value) if isinstance(value, list | tuple) else plain(value)


def _width(text: str) -> int:
    """Columns that a terminal gives it: wide letters take two, marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
