"""Grounds, colour words and recolouring: everything that turns an RGBA icon into an ordinary picture."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

SIZE = 64

GROUNDS = {
    "red": (222, 52, 52),
    "orange": (247, 148, 40),
    "yellow": (252, 218, 72),
    "green": (70, 170, 84),
    "blue": (52, 112, 222),
    "purple": (128, 74, 188),
    "pink": (246, 146, 190),
    "brown": (132, 88, 58),
    "gray": (142, 146, 152),
    "black": (24, 24, 28),
}
WHITE = (255, 255, 255)

# colour word -> hue in degrees, factor on saturation, factor on brightness
HUES = {
    "red": (2, 1.0, 1.0),
    "orange": (28, 1.0, 1.05),
    "yellow": (48, 0.9, 1.15),
    "green": (125, 0.85, 0.85),
    "blue": (215, 0.9, 1.0),
    "purple": (275, 0.8, 0.9),
    "pink": (330, 0.55, 1.15),
}


def luminance(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] in [0, 1] -> [...] in [0, 1]."""
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def on_ground(rgba: np.ndarray, ground: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Icon [64, 64, 4] over a plain ground -> [64, 64, 3], all in [0, 1]."""
    return rgba[..., :3] * rgba[..., 3:] + np.array(ground, np.float32) / 255 * (1 - rgba[..., 3:])


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(to_bytes(rgb)).convert("HSV"), np.float32) / 255


def from_hsv(hsv: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(to_bytes(hsv), "HSV").convert("RGB"), np.float32) / 255


def to_bytes(picture: np.ndarray) -> np.ndarray:
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def recolor(rgba: np.ndarray, color: str) -> np.ndarray:
    """Gives the icon's main hue to another colour word; other hues, black and white stay. [64, 64, 4] in [0, 1]."""
    hue, more_saturation, more_value = HUES[color]
    hsv = to_hsv(rgba[..., :3])
    weight = hsv[..., 1] * hsv[..., 2] * rgba[..., 3]
    angle = hsv[..., 0] * 2 * np.pi
    main = np.arctan2((weight * np.sin(angle)).sum(), (weight * np.cos(angle)).sum()) / (2 * np.pi)
    offset = (hsv[..., 0] - main + 0.5) % 1 - 0.5
    changed = (np.abs(offset) < 0.14) & (hsv[..., 1] > 0.2)
    new = np.stack([(hue / 360 + 0.5 * offset) % 1, hsv[..., 1] * more_saturation, hsv[..., 2] * more_value], -1).clip(
        0, 1
    )
    return np.concatenate([np.where(changed[..., None], from_hsv(new), rgba[..., :3]), rgba[..., 3:]], -1)


def random_ground(rng: np.random.Generator) -> tuple[int, int, int]:
    """A ground of any colour, for training the VAE."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, 1 - 0.9 * rng.random() ** 2)
    return tuple(int(255 * channel) for channel in rgb)
