"""A folder of pictures as training material."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


class FolderError(Exception):
    """The folder cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Example:
    picture: torch.Tensor  # [3, size, size] in [-1, 1]
    captions: list[str]


def read_folder(folder: Path, size: int) -> list[Example]:
    """Every picture below `folder`, in the order of their names, with its captions."""
    if not folder.is_dir():
        raise FolderError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FolderError(f"There are no pictures ({', '.join(sorted(SUFFIXES))}) in {folder}.")
    return [Example(read_picture(path, size), read_captions(path)) for path in paths]


def read_picture(path: Path, size: int) -> torch.Tensor:
    """Cut to a centred square, scaled, transparent parts laid on white."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise FolderError(f"{path} is not a picture that can be read.") from error
    white = Image.new("RGBA", image.size, "white")
    square = ImageOps.fit(Image.alpha_composite(white, image).convert("RGB"), (size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(square, np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def read_captions(path: Path) -> list[str]:
    """The lines of the .txt file beside the picture, else its name: `red_apple-03.png` is a `red apple`."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        lines = [line.strip() for line in beside.read_text(encoding="utf-8", errors="replace").splitlines()]
        return [line for line in lines if line] or [""]
    return [re.sub(r"\s+", " ", re.sub(r"[_\-.]+|\d+", " ", path.stem)).strip()]
