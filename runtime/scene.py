"""What holds from one step of a request to another: texts, their weights, and how strongly each adapter acts.

Prompts may change their words, and switch adapters, from step to step; between two changes nothing moves. A scene is
made for each such stretch, for the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lora_edge.adapter import Adapter
from lora_edge.forms import ComponentForms
from lora_edge.multiplier import Multiplier
from lora_edge.prompt import Part, Phase, Prompt
from lora_edge.runtime.pairs import Pair, Strength, multipliers, of_image

OFF = Multiplier(0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """A stretch of steps.

    Attributes:
        until: the last step that it holds for, counted from 1.
        negatives: the negative prompt of each image.
        parts: the parts of each image's prompt (`AND` makes several).
        adapters: with multipliers; those that differ are given image by image.
    """

    until: int
    negatives: tuple[Part, ...]
    parts: tuple[tuple[Part, ...], ...]
    adapters: tuple[Pair, ...]


def scenes(
    prompts: Sequence[Prompt],
    negatives: Sequence[Prompt],
    steps: int,
    called: Mapping[str, Adapter],
    adapters: Sequence[Pair],
) -> tuple[Scene, ...]:
    """The stretches of a request, in order; the last one's `until` is `steps`.

    Args:
        prompts, negatives: one per image.
        called: name in a tag -> adapter.
        adapters: given beside the tags; they hold throughout.
    """
    courses = [prompt.phases(steps) for prompt in prompts]
    beneath = [negative.phases(steps) for negative in negatives]
    ends = sorted({phase.until for course in (*courses, *beneath) for phase in course})
    made = []
    for until in ends:
        now = [_at(course, until) for course in courses]
        pairs = (*_tagged(now, called), *adapters)
        negative = tuple(_at(course, until).parts[0] for course in beneath)
        made.append(Scene(until, negative, tuple(phase.parts for phase in now), pairs))
    return tuple(made)


def alike(story: Sequence[Scene], images: int, alone: Callable[[ComponentForms], bool]) -> list[list[int]]:
    """Images that one batch can hold: those for which whatever acts on a whole batch acts alike, step for step.

    Args:
        alone: whether something in what an adapter does to a component acts on a whole batch.

    Returns:
        Indices of images, group by group, every image once.
    """

    def key(image: int) -> list[tuple[int, list[tuple[str, int, str]]]]:
        return [(scene.until, _uniform(scene.adapters, image, alone)) for scene in story]

    keys = {image: repr(key(image)) for image in range(images)}
    ordered = sorted(range(images), key=lambda image: keys[image])
    return sorted(list(group) for _, group in groupby(ordered, key=lambda image: keys[image]))


def share(pair: Pair, images: Sequence[int]) -> Pair:
    """An adapter as some images of the batch see it."""
    adapter, strength = pair
    each = multipliers(strength)
    return (adapter, each[0]) if len(each) == 1 else (adapter, [each[image] for image in images])


def is_off(strength: Strength) -> bool:
    """Whether a multiplier, or all of them, are 0."""
    return all(Multiplier.of(one) == OFF for one in multipliers(strength))


def _at(course: Sequence[Phase], step: int) -> Phase:
    return next(phase for phase in course if phase.until >= step)


def _tagged(now: Sequence[Phase], called: Mapping[str, Adapter]) -> list[Pair]:
    """One pair for each tag; an image without it has it off."""
    rows: dict[tuple[str, int], list[float | Multiplier]] = {}
    for image, phase in enumerate(now):
        seen: dict[str, int] = {}
        for call in phase.calls:
            nth = seen[call.name] = seen.get(call.name, -1) + 1
            rows.setdefault((call.name, nth), [OFF] * len(now))[image] = call.multiplier
    return [(called[name], each[0] if len(set(each)) == 1 else each) for (name, _), each in rows.items()]


def _uniform(pairs: Sequence[Pair], image: int, alone: Callable[[ComponentForms], bool]) -> list[tuple[str, int, str]]:
    """How each adapter that acts on a whole batch acts on one image."""
    made = []
    for adapter, strength in pairs:
        if any(map(alone, adapter.components.values())):
            own = Multiplier.of(of_image(strength, image))
            if own != OFF:
                made.append((adapter.name, id(adapter), repr(own)))
    return sorted(made)
