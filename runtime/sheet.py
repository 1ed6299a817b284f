"""Contact sheets: images in a grid, with captions on top and at the left."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lora_edge.errors import RequestError

BACKGROUND, INK = "white", "#202020"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 160, gap: int = 8
) -> Image.Image:
    """Lays images out in a grid.

    Args:
        columns: a caption for each column.
        rows: caption and images of each row, one image per column.
        cell: least width of a column in pixels; smaller images are enlarged by a whole factor, larger ones stay.
        gap: pixels between cells.

    Returns:
        An RGB image.

    Raises:
        RequestError: there is no image, or a row has another number of images than there are columns.
    """
    if not columns or not rows:
        raise RequestError("a contact sheet needs at least one row and one column")
    for caption, images in rows:
        if len(images) != len(columns):
            raise RequestError(f"row {caption!r} has {len(images)} images for {len(columns)} columns")
    grid = [[_enlarged(image, cell) for image in images] for _, images in rows]
    width = max(image.width for row in grid for image in row)
    heights = [max(image.height for image in row) for row in grid]
    font = ImageFont.load_default(max(14, width // 10))
    line = round(font.getbbox("Ag")[3] * 1.25)
    heads = [_wrapped(caption, font, width) for caption in columns]
    sides = [_wrapped(caption, font, width) for caption, _ in rows]
    top = max(map(len, heads)) * line + gap
    heights = [max(height, len(side) * line) for height, side in zip(heights, sides, strict=True)]

    size = (width + gap + len(columns) * (width + gap) + gap, top + gap + sum(heights) + gap * len(heights))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = [(width + gap) * (number + 1) + gap for number in range(len(columns))]
    for left, head in zip(lefts, heads, strict=True):
        _write(draw, head, left, top - len(head) * line, line, font)
    y = top + gap
    for side, images, height in zip(sides, grid, heights, strict=True):
        _write(draw, side, gap, y, line, font)
        for left, image in zip(lefts, images, strict=True):
            sheet.paste(image, (left, y))
        y += height + gap
    return sheet


def _enlarged(image: Image.Image, cell: int) -> Image.Image:
    factor = max(1, -(-cell // image.width))
    # Whole factors and hard pixels, so that a small image is shown as it is.
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _wrapped(caption: str, font: Font, width: int) -> list[str]:
    """Lines that fit the width; a word that does not is cut."""
    lines = [""]
    for word in caption.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width and lines[-1]:
                lines.append("")
            lines[-1] += letter
    return lines


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, line: int, font: Font) -> None:
    for number, text in enumerate(lines):
        draw.text((x, y + number * line), text, fill=INK, font=font)
