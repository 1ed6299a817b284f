"""Rows of captioned images."""

import numpy as np
import pytest
from PIL import Image

from lora_edge.errors import RequestError
from lora_edge.runtime.gallery import MISSING, gallery


def cells(count: int) -> list[tuple[str, Image.Image | None]]:
    return [(f"style {number}", Image.new("RGB", (8, 8), (number + 1, 0, 0))) for number in range(count)]


def reds(image: Image.Image) -> list[int]:
    """Where the images are: the red of every one, row by row."""
    pixels = np.asarray(image)
    plain = (pixels[..., 1] == 0) & (pixels[..., 2] == 0) & (pixels[..., 0] < 32) & (pixels[..., 0] > 0)
    return list(dict.fromkeys(pixels[plain][:, 0].tolist()))


def test_images_row_by_row() -> None:
    made = gallery(cells(7), "a cat", columns=3, cell=40)
    assert reds(made) == [1, 2, 3, 4, 5, 6, 7]
    assert made.size == (gallery(cells(3), columns=3, cell=40).width, 3 * gallery(cells(3), "a cat", 3, 40).height)


def test_few_images_take_few_columns() -> None:
    assert gallery(cells(2), columns=6, cell=40).width < gallery(cells(6), columns=6, cell=40).width


def test_a_missing_image_keeps_its_place() -> None:
    made = gallery([*cells(1), ("gone (does not fit)", None), *cells(3)[2:]], columns=3, cell=40)
    assert reds(made) == [1, 3]
    grey = Image.new("RGB", (1, 1), MISSING).getpixel((0, 0))
    assert grey in {tuple(pixel) for row in np.asarray(made).tolist() for pixel in row}


@pytest.mark.parametrize("empty", [[], [("a", None)]])
def test_nothing_to_show_is_refused(empty: list[tuple[str, None]]) -> None:
    with pytest.raises(RequestError, match="needs at least one image"):
        gallery(empty)
