"""Latents too large to decode at once, decoded in tiles that overlap and fade into each other.

The rules are those of diffusers' `AutoencoderKL.tiled_decode`: tiles begin every three quarters of a tile, and each
fades, line by line, from the tile above and then from the one on its left over the quarter that they share. A tile
knows the mean brightness of its own part alone, so colours may differ a little from those of a whole decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import RequestError

Wish: TypeAlias = int | Literal["auto", "off"]
Decode: TypeAlias = Callable[[FloatArray], FloatArray]

OVERLAP = 0.25  # of a tile
SIDE = 64  # latents a side of a tile, what Stable Diffusion 1 was trained with
WHOLE = 96  # latents: up to this square an image is decoded at once


@dataclass(frozen=True)
class Tiling:
    """When and how latents are cut.

    Attributes:
        side: latents a side of a tile.
        whole: an image of at most so many latents in height x width is decoded at once.
    """

    side: int
    whole: int

    @classmethod
    def of(cls, wish: Wish) -> "Tiling | None":
        """What a caller asks for: "auto" cuts what is larger than 96 x 96 latents (768 x 768 pixels of Stable
        Diffusion 1) into tiles of 64, a number whatever is larger than a square of that side into tiles of it, "off"
        nothing.

        Raises:
            RequestError: something else, or a side that has no quarters.
        """
        if wish == "off":
            return None
        if wish == "auto":
            return cls(SIDE, WHOLE**2)
        if type(wish) is not int or wish < 4 or wish % 4:
            raise RequestError(f"vae_tile is {wish!r}; it is auto, off or a multiple of 4, latents a side of a tile")
        return cls(wish, wish**2)

    def decode(self, decode: Decode, latents: FloatArray) -> FloatArray:
        """Decode latents, in tiles if they are large.

        Args:
            decode: latents [rows, channels, height, width] -> pixels [rows, 3, factor * height, factor * width].
            latents: the same.

        Returns:
            What `decode` gives for all of them, or close to it, float32.
        """
        height, width = latents.shape[2:]
        if height * width <= self.whole or max(height, width) <= self.side:
            return decode(latents)
        stride = self.side - int(self.side * OVERLAP)
        bands, above = [], list[FloatArray]()
        for top in range(0, height, stride):
            tiles: list[FloatArray] = []
            for left in range(0, width, stride):
                part = latents[:, :, top : top + self.side, left : left + self.side]
                tile = np.array(decode(part), np.float32)
                factor = tile.shape[2] // part.shape[2]
                fade = int(self.side * factor * OVERLAP)
                if above:
                    _fade(above[len(tiles)], tile, fade)
                if tiles:
                    _fade(tiles[-1].swapaxes(2, 3), tile.swapaxes(2, 3), fade)
                tiles.append(tile)
            kept = stride * factor
            bands.append(np.concatenate([tile[:, :, :kept, :kept] for tile in tiles], axis=3))
            above = tiles
        return np.concatenate(bands, axis=2)


def _fade(first: FloatArray, second: FloatArray, lines: int) -> None:
    """Let the last lines of one tile fade into the first ones of the next, in place; lines lie along axis 2."""
    lines = min(first.shape[2], second.shape[2], lines)
    share = (np.arange(lines, dtype=np.float32) / np.float32(lines))[:, None]
    begin = second[:, :, :lines]
    begin[...] = first[:, :, -lines:] * (1 - share) + begin * share
