"""What sizes of images a bundle can make."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_edge.errors import BundleDamaged, RequestError


@dataclass(frozen=True)
class Size:
    """What sizes a bundle can make.

    Attributes:
        factor: pixels per latent.
        multiple: width and height in pixels are multiples of it.
        usual: pixels a side that the model was made for.
        fixed: (height, width) in pixels where the graphs have one size, None where it is free.
    """

    factor: int
    multiple: int
    usual: int
    fixed: tuple[int, int] | None = None

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any], latent: tuple[int, int] | None = None) -> "Size":
        """From the configs of UNet and VAE: each of their levels but the first halves the picture.

        Args:
            latent: (height, width) in latents where the graphs have one size.

        Raises:
            BundleDamaged: the configs do not say.
        """
        try:
            factor = 2 ** (len(vae["block_out_channels"]) - 1)
            halvings = 2 ** (len(unet["block_out_channels"]) - 1)
            fixed = (factor * latent[0], factor * latent[1]) if latent else None
            return cls(factor, factor * halvings, factor * int(unet.get("sample_size") or 64), fixed)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleDamaged(f"the configs of UNet and VAE do not say their sizes ({error!r})") from error

    def check(self, word: str, pixels: int | None) -> int:
        """A width or height in pixels; None is the usual one.

        Raises:
            RequestError: not a positive multiple, or not the one size.
        """
        if self.fixed is not None:
            return self._only(word, pixels, dict(zip(("height", "width"), self.fixed, strict=True))[word])
        pixels = self.usual if pixels is None else pixels
        if pixels < self.multiple or pixels % self.multiple:
            near = max(1, round(pixels / self.multiple)) * self.multiple
            raise RequestError(f"{word} {pixels} is not a positive multiple of {self.multiple}; try {near}")
        return pixels

    def _only(self, word: str, pixels: int | None, made: int) -> int:
        if pixels not in (None, made):
            raise RequestError(
                f"{word} {pixels} is not the {made} that these graphs were made for; export others for it"
            )
        return made
