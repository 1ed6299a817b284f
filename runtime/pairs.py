"""What callers give as `adapters`: pairs of an adapter and how strongly it acts."""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.errors import RequestError
from lora_edge.multiplier import Multiplier, is_plain

Strength: TypeAlias = float | Multiplier | Sequence[float | Multiplier]
"""A multiplier: one for all, or one per image of the batch; each a number, or a `Multiplier`."""

Pair: TypeAlias = tuple[Adapter, Strength]

Adapters: TypeAlias = Sequence[Pair] | Sequence[Sequence[Pair]]
"""Adapters with multipliers, for all images or image by image."""


def plain_sums(component: str, adapters: Adapters) -> list[tuple[Adapter, float]] | None:
    """Adapters that act on a component, with the sum of their multipliers, where all of these are plain numbers.

    What a slider that moves asks for: found in a fraction of the time that `checked_pairs` and all that may follow from
    it take. None for whatever else is given, right or wrong.
    """
    if type(adapters) not in (list, tuple):
        return None
    sums: dict[int, tuple[Adapter, float]] = {}
    for pair in adapters:
        if type(pair) is not tuple or len(pair) != 2:
            return None
        adapter, number = pair
        if type(adapter) is not Adapter or not is_plain(number):
            return None
        if component in adapter.components:
            sums[id(adapter)] = adapter, sums.get(id(adapter), (adapter, 0.0))[1] + number
    return [pair for pair in sums.values() if pair[1]]


def checked_pairs(adapters: Adapters, images: int | None = None) -> list[Pair]:
    """What a caller gave as `adapters`; pairs given image by image become pairs with one multiplier per image.

    Args:
        images: how many there are; None where lists per image make no sense.

    Raises:
        RequestError: something else than (adapter, multiplier) pairs, or lists that are not one per image.
    """
    given: list[Any] = list(adapters)
    if all(map(_is_pair, given)):
        for _, strength in given:
            if not is_plain(strength):
                checked(strength, images)
        return [(adapter, strength) for adapter, strength in given]
    if images is None or not all(isinstance(own, Sequence) and all(map(_is_pair, own)) for own in given):
        raise RequestError("adapters is a list of (adapter, multiplier), the adapters from engine.load_adapter")
    if len(given) != images:
        raise RequestError(f"adapters has lists for {len(given)} images; there are {images}")
    if any(len(checked(strength)) != 1 for own in given for _, strength in own):
        raise RequestError("an adapter that is given for one image takes one multiplier")
    return [
        (adapter, [multipliers(strength)[0] if row == image else 0.0 for row in range(images)])
        for image, own in enumerate(given)
        for adapter, strength in own
    ]


def _is_pair(item: Any) -> bool:
    return isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], Adapter)


def multipliers(strength: Strength) -> Sequence[float | Multiplier]:
    """One for all images, or one for each."""
    if isinstance(strength, Sequence | np.ndarray) and not isinstance(strength, str):
        return strength
    return [strength]


def checked(strength: Strength, images: int | None = None) -> list[Multiplier]:
    """The multipliers, one or one for each image.

    Raises:
        RequestError: none, or something else than finite numbers and `Multiplier`s, or another count than images.
    """
    try:
        made = [Multiplier.of(one) for one in multipliers(strength)]
    except (TypeError, ValueError):
        made = []
    if not made:
        raise RequestError(f"multipliers {strength!r} are not one finite number per row")
    if images is not None and len(made) not in (1, images):
        refuse_rows({len(made)}, images)
    return made


def of_image(strength: Strength, image: int) -> float | Multiplier:
    """The multiplier of one image."""
    each = multipliers(strength)
    return each[image if len(each) > 1 else 0]


def refuse_rows(counts: set[int], rows: int | None) -> NoReturn:
    """Raises RequestError: multipliers of so many different rows."""
    found = " and ".join(map(str, sorted(counts)))
    raise RequestError(f"adapters have {found} multipliers for {rows or 'the same'} rows: give one, or one each")
