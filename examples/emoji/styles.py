"""Rendering rules: each turns an RGBA icon [64, 64, 4] into a picture [64, 64, 3], all values in [0, 1].

Every rule keeps each contour where it was. An adapter trained on such pairs learns a look, not another drawing, and so
carries over to things it was never shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from paint import from_hsv, luminance, on_ground, to_bytes, to_hsv
from PIL import Image, ImageFilter

Rule = Callable[[np.ndarray], np.ndarray]


def blur(plane: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of [64, 64] or [64, 64, 3] in [0, 1]."""
    if plane.ndim == 3:
        return np.stack([blur(plane[..., channel], radius) for channel in range(plane.shape[-1])], -1)
    padded = Image.fromarray(to_bytes(np.pad(plane, 8, mode="edge")))
    soft = padded.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, np.float32)[8:-8, 8:-8] / 255


def lines(rgba: np.ndarray, gain: float = 2.2) -> np.ndarray:
    """Strength of contours, [64, 64] in [0, 1]: gradients of the outline and of every colour channel inside it."""
    planes = np.concatenate([on_ground(rgba, (128, 128, 128)), rgba[..., 3:]], -1)
    padded = np.pad(planes, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    along = padded[2:, 1:-1] - padded[:-2, 1:-1]
    return (gain * np.sqrt(across**2 + along**2).max(-1) - 0.25).clip(0, 1)


def blueprint(rgba: np.ndarray) -> np.ndarray:
    """Pale lines on navy, with a faint wash where the object is."""
    navy, wash, chalk = (np.array(c, np.float32) / 255 for c in ((16, 44, 110), (38, 78, 158), (222, 240, 255)))
    ground = navy + (wash - navy) * rgba[..., 3:] * luminance(rgba[..., :3])[..., None]
    return ground + (chalk - ground) * lines(rgba)[..., None]


def neon(rgba: np.ndarray) -> np.ndarray:
    """Glowing tubes in the object's own colours against the dark."""
    hsv = to_hsv(blur(on_ground(rgba, (200, 200, 200)), 1.0))
    grey = hsv[..., 1] < 0.25
    hsv[..., 0] = np.where(grey, 0.52, hsv[..., 0])
    hsv[..., 1] = np.where(grey, 0.75, 0.9)
    hsv[..., 2] = 1.0
    tube = from_hsv(hsv)
    line = lines(rgba, 2.0)[..., None]
    glow = blur(tube * line, 3.0)
    dark = np.array((14, 8, 30), np.float32) / 255 + 0.16 * rgba[..., :3] * rgba[..., 3:]
    return (dark + line * tube + 1.1 * glow).clip(0, 1)


def sepia(rgba: np.ndarray) -> np.ndarray:
    """An old photograph: brown tones on yellowed paper, darker towards the corners."""
    dark, light = (np.array(c, np.float32) / 255 for c in ((58, 30, 12), (246, 226, 184)))
    tone = luminance(on_ground(rgba)) ** 1.15
    y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
    tone = tone * (1 - 0.3 * ((x**2 + y**2) / 2) ** 2)
    return dark + (light - dark) * tone[..., None]


def pixel(rgba: np.ndarray) -> np.ndarray:
    """Blocks of four pixels in few, strong colours on pale mint."""
    ground = on_ground(rgba, (206, 240, 226))
    blocks = ground.reshape(16, 4, 16, 4, 3).mean((1, 3))
    levels = np.round(blocks * 5) / 5
    return levels.repeat(4, 0).repeat(4, 1)


STYLES: dict[str, Rule] = {"blueprint": blueprint, "neon": neon, "sepia": sepia, "pixel": pixel}
