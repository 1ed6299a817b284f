"""One request for images: every setting, checked before the first step."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lora_edge import prompt as prompts
from lora_edge.errors import PromptError, RequestError
from lora_edge.forms import ComponentForms
from lora_edge.library import short_hash
from lora_edge.prompt import Prompt
from lora_edge.runtime import samplers
from lora_edge.runtime.samplers import Plan
from lora_edge.runtime.scene import Scene, alike, is_off, share
from lora_edge.runtime.size import Size
from lora_edge.runtime.words import Words

MAX_BATCH = 64
MAX_PIXELS = 4096 * 4096

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """A request that can be met.

    Attributes:
        images: indices of the images in the whole request, which may take several batches.
        prompts, negatives: one per image.
        seeds: one per image.
        guidance: weight of classifier-free guidance; at most 1 means none.
        plan: sampler and noise levels.
        width, height: pixels.
        clip_skip: which layer of the text encoder is read, counted from the last, 1.
        story: what holds from step to step, adapters included; empty until they are resolved.
        words: what the text encoder can read, None until then.
    """

    images: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    guidance: float
    plan: Plan
    width: int
    height: int
    clip_skip: int
    story: tuple[Scene, ...] = ()
    words: Words | None = None

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.seeds)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has a say: by guidance, or because a prompt has weighted parts."""
        composed = any(len(parts) > 1 or parts[0].weight != 1 for scene in self.story for parts in scene.parts)
        return self.guidance > 1 or composed

    def scene(self, step: int) -> Scene:
        """What holds at a step, counted from 1."""
        return next(scene for scene in self.story if scene.until >= step)

    def batches(self, alone: Callable[[ComponentForms], bool]) -> list["Request"]:
        """The request in as few batches as can be; their `images` say which is which. See `scene.alike`."""
        groups = alike(self.story, self.rows, alone)
        return [self] if len(groups) == 1 else [self._only(group) for group in groups]

    def parameters(self, image: int, model: str) -> dict[str, Any]:
        """How an image of it is made, by a model of that name: the arguments of `Infotext.of`."""
        pairs = [share(pair, [image]) for scene in self.story for pair in scene.adapters]
        acting = {adapter.name: adapter for adapter, strength in pairs if not is_off(strength)}
        hashes = {name: short_hash(adapter.path) for name, adapter in acting.items() if adapter.path is not None}
        return {
            "prompt": self.prompts[image].source,
            "negative_prompt": self.negatives[image].source,
            "steps": self.plan.steps,
            "sampler": self.plan.title,
            "guidance": self.guidance,
            "seed": self.seeds[image],
            "width": self.width,
            "height": self.height,
            "model": model,
            "clip_skip": self.clip_skip,
            "lora_hashes": hashes,
        }

    def _only(self, images: Sequence[int]) -> "Request":
        def of(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(items[image] for image in images)

        story = tuple(
            Scene(scene.until, of(scene.negatives), of(scene.parts), tuple(share(p, images) for p in scene.adapters))
            for scene in self.story
        )
        return replace(
            self,
            images=of(self.images),
            prompts=of(self.prompts),
            negatives=of(self.negatives),
            seeds=of(self.seeds),
            story=story,
        )


def make_request(
    prompt: str | Sequence[str],
    *,
    size: Size,
    scheduler: Mapping[str, Any],
    negative_prompt: str | Sequence[str],
    seed: int | Sequence[int] | None,
    steps: int,
    guidance: float,
    sampler: str,
    width: int | None,
    height: int | None,
    batch: int,
    clip_skip: int,
    settings: Mapping[str, Any],
) -> Request:
    """Check every setting that needs no adapter. What is given once holds for every image; seeds count up.

    Raises:
        PromptError: a malformed prompt, or a tag in a negative prompt.
        RequestError: a setting that cannot be met.
    """
    batch = _batch(batch, prompt=prompt, negative_prompt=negative_prompt, seed=seed)
    if not abs(guidance) < float("inf"):
        raise RequestError(f"guidance is {guidance}; it must be a finite number, 1 or less for none")
    width, height = size.check("width", width), size.check("height", height)
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width} x {height} pixels are more than the {MAX_PIXELS} that one image may have")
    first = secrets.randbelow(2**32) if seed is None else seed
    return Request(
        images=tuple(range(batch)),
        prompts=tuple(prompts.parse(text) for text in _each(prompt, batch)),
        negatives=tuple(_negative(text) for text in _each(negative_prompt, batch)),
        seeds=tuple(first + row for row in range(batch)) if isinstance(first, int) else tuple(first),
        guidance=float(guidance),
        plan=samplers.plan(sampler, scheduler, steps, **settings),
        width=width,
        height=height,
        clip_skip=clip_skip,
    )


def _batch(batch: int, **given: Any) -> int:
    """How many images there are."""
    lists = {word: value for word, value in given.items() if not isinstance(value, str | int | None)}
    counts = {word: len(value) for word, value in lists.items()}
    if batch != 1:
        counts["batch"] = batch
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{word} {count}" for word, count in counts.items())
        raise RequestError(f"the settings are for different numbers of images: {told}")
    batch = next(iter(counts.values()), batch)
    if not 1 <= batch <= MAX_BATCH:
        raise RequestError(f"batch is {batch}; it must be from 1 to {MAX_BATCH}")
    return batch


def _each(texts: str | Sequence[str], batch: int) -> Sequence[str]:
    return [texts] * batch if isinstance(texts, str) else texts


def _negative(text: str) -> Prompt:
    parsed = prompts.parse(text, composition=False)
    if parsed.calls:
        call = parsed.calls[0]
        raise PromptError(
            f"the adapter {call.name!r} is in the negative prompt; give it a negative multiplier in the prompt instead",
            text,
            call.at,
        )
    return parsed
