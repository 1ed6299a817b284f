"""Arrays -> images -> PNG files that say how they were made."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_edge.arrays import FloatArray
from lora_edge.errors import GraphFailed, RequestError
from lora_edge.runtime.infotext import Infotext

PARAMETERS = "parameters"


def to_images(pixels: FloatArray) -> list[Image.Image]:
    """What a VAE decodes -> RGB images, as diffusers' `VaeImageProcessor` makes them.

    Args:
        pixels: [rows, 3, height, width] float, -1 .. 1; what lies outside is clipped.

    Raises:
        GraphFailed: another shape, or numbers that are not finite.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise GraphFailed(f"the VAE decoder gave the shape {pixels.shape}; [rows, 3, height, width] is an image")
    if not np.isfinite(pixels).all():
        raise GraphFailed("the VAE decoder gave numbers that are not finite")
    unit = np.clip(pixels.astype(np.float32) * np.float32(0.5) + np.float32(0.5), 0, 1)
    rounded = (unit.transpose(0, 2, 3, 1) * np.float32(255)).round().astype(np.uint8)
    return [Image.fromarray(row) for row in rounded]


def label(image: Image.Image, parameters: Mapping[str, Any]) -> Image.Image:
    """Writes into `image.info["parameters"]` how the image was made.

    Args:
        parameters: the arguments of `Infotext.of`.

    Returns:
        The same image.
    """
    image.info[PARAMETERS] = str(Infotext.of(**parameters))
    return image


def save_png(image: Image.Image, path: str | Path) -> None:
    """Writes a PNG with `image.info["parameters"]`, if there, as text chunk; all of the file or nothing.

    Raises:
        RequestError: the file cannot be written there.
    """
    path = Path(path)
    info = PngInfo()
    if PARAMETERS in image.info:
        info.add_text(PARAMETERS, image.info[PARAMETERS])  # tEXt, or iTXt for what Latin-1 cannot say
    # Beside its place, as a file moves in one go only within a file system.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            image.save(file, "PNG", pnginfo=info)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def parameters_of(path: str | Path) -> Infotext | None:
    """How an image file says it was made; None if it does not say.

    Raises:
        RequestError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(PARAMETERS)
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError(f"cannot read {path} as an image: {error}") from error
    return Infotext.read(text) if isinstance(text, str) else None
