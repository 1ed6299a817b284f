"""One request for images: every setting, checked before the first step."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_edge import prompt as prompts
from lora_edge.adapter import Adapter
from lora_edge.errors import BundleDamaged, PromptError, RequestError
from lora_edge.runtime import samplers
from lora_edge.runtime.samplers import Plan
from lora_edge.runtime.swap import Strength

MAX_BATCH = 64
MAX_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Size:
    """What sizes a bundle can make.

    Attributes:
        factor: pixels per latent.
        multiple: width and height in pixels are multiples of it.
        usual: pixels a side that the model was made for.
    """

    factor: int
    multiple: int
    usual: int

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> "Size":
        """From the configs of UNet and VAE: each of their levels but the first halves the picture.

        Raises:
            BundleDamaged: the configs do not say.
        """
        try:
            factor = 2 ** (len(vae["block_out_channels"]) - 1)
            halvings = 2 ** (len(unet["block_out_channels"]) - 1)
            return cls(factor, factor * halvings, factor * int(unet.get("sample_size") or 64))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleDamaged(f"the configs of UNet and VAE do not say their sizes ({error!r})") from error

    def check(self, word: str, pixels: int | None) -> int:
        """A width or height in pixels; None is the usual one.

        Raises:
            RequestError: not a positive multiple.
        """
        pixels = self.usual if pixels is None else pixels
        if pixels < self.multiple or pixels % self.multiple:
            near = max(1, round(pixels / self.multiple)) * self.multiple
            raise RequestError(f"{word} {pixels} is not a positive multiple of {self.multiple}; try {near}")
        return pixels


@dataclass(frozen=True)
class Request:
    """A request that can be met.

    Attributes:
        prompt: as written, tags and all.
        text: the prompt without tags.
        negative: the negative prompt.
        calls: adapters that the tags name.
        seeds: one per image.
        guidance: weight of classifier-free guidance; at most 1 means none.
        plan: sampler and noise levels.
        width, height: pixels.
        adapters: resolved ones with multipliers, those of the tags included.
    """

    prompt: str
    text: str
    negative: str
    calls: tuple[prompts.AdapterCall, ...]
    seeds: tuple[int, ...]
    guidance: float
    plan: Plan
    width: int
    height: int
    adapters: tuple[tuple[Adapter, Strength], ...] = ()

    def with_adapters(self, adapters: Sequence[tuple[Adapter, Strength]]) -> "Request":
        """The same request with its adapters resolved."""
        return replace(self, adapters=tuple(adapters))

    @property
    def rows(self) -> int:
        return len(self.seeds)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has a say."""
        return self.guidance > 1


def make_request(
    prompt: str,
    *,
    size: Size,
    scheduler: Mapping[str, Any],
    negative_prompt: str,
    seed: int | None,
    steps: int,
    guidance: float,
    sampler: str,
    width: int | None,
    height: int | None,
    batch: int,
    settings: Mapping[str, Any],
) -> Request:
    """Check every setting that needs no adapter. Images after the first have the seeds that follow.

    Raises:
        PromptError: a malformed tag, or a tag in the negative prompt.
        RequestError: a setting that cannot be met.
    """
    parsed, negative = prompts.parse(prompt), prompts.parse(negative_prompt)
    if negative.calls:
        call = negative.calls[0]
        raise PromptError(
            f"the adapter {call.name!r} is in the negative prompt; give it a negative multiplier in the prompt instead",
            negative_prompt,
            call.at,
        )
    if not 1 <= batch <= MAX_BATCH:
        raise RequestError(f"batch is {batch}; it must be from 1 to {MAX_BATCH}")
    if not abs(guidance) < float("inf"):
        raise RequestError(f"guidance is {guidance}; it must be a finite number, 1 or less for none")
    width, height = size.check("width", width), size.check("height", height)
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width} x {height} pixels are more than the {MAX_PIXELS} that one image may have")
    first = secrets.randbelow(2**32) if seed is None else seed
    return Request(
        prompt=prompt,
        text=parsed.text,
        negative=negative_prompt,
        calls=parsed.calls,
        seeds=tuple(first + row for row in range(batch)),
        guidance=float(guidance),
        plan=samplers.plan(sampler, scheduler, steps, **settings),
        width=width,
        height=height,
    )


def checked_pairs(adapters: Sequence[tuple[Adapter, Strength]]) -> list[tuple[Adapter, Strength]]:
    """What a caller gave as `adapters`.

    Raises:
        RequestError: something else than (adapter, multiplier) pairs.
    """
    for item in adapters:
        if not (isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], Adapter)):
            raise RequestError("adapters is a list of (adapter, multiplier), the adapters from engine.load_adapter")
    return [(adapter, strength) for adapter, strength in adapters]
