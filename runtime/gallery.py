"""Galleries: captioned images row by row, such as one for every adapter of a folder."""

from collections.abc import Sequence

from PIL import Image

from lora_edge.errors import RequestError
from lora_edge.runtime.sheet import BACKGROUND, contact_sheet

MISSING = "#d8d8d8"


def gallery(
    cells: Sequence[tuple[str, Image.Image | None]], title: str = "", columns: int = 6, cell: int = 160
) -> Image.Image:
    """Lays captioned images out in rows.

    Args:
        cells: caption and image; None draws an empty place, so that its caption is not lost.
        title: stands at the left of the first row.
        columns: images of a row.
        cell: as for `contact_sheet`.

    Returns:
        An RGB image.

    Raises:
        RequestError: there is no image.
    """
    size = next((image.size for _, image in cells if image), None)
    if size is None:
        raise RequestError("a gallery needs at least one image")
    columns = min(columns, len(cells))
    blank = [("", Image.new("RGB", size, BACKGROUND))] * (-len(cells) % columns)
    drawn = [*((caption, image or Image.new("RGB", size, MISSING)) for caption, image in cells), *blank]
    strips = []
    for first in range(0, len(drawn), columns):
        captions, images = zip(*drawn[first : first + columns], strict=True)
        strips.append(contact_sheet(captions, [("" if first else title, images)], cell))
    made = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), BACKGROUND)
    top = 0
    for strip in strips:
        made.paste(strip, (0, top))
        top += strip.height
    return made
