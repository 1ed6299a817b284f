"""Prompts: text with adapter tags, `a red apple <lora:ink:0.8>`.

The syntax is AUTOMATIC1111's (modules/extra_networks.py, parse_prompt): `<lora:name>`, `<lora:name:multiplier>`,
`<lora:name:te:unet>`, with `te=` and `unet=` by name; `lyco` is another word for `lora`. A tag is cut out of the text
and everything around it stays as it is, doubled spaces too. Where that program passes over a mistake, this refuses.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_edge.errors import PromptError
from lora_edge.multiplier import Multiplier

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)(>?)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_ARGUMENTS = ("te", "unet")


@dataclass(frozen=True)
class AdapterCall:
    """One adapter that a prompt asks for.

    Attributes:
        name: as written in the tag; a file's stem or alias.
        multiplier: of text encoders and UNet.
        at: offset in characters of the first tag with this name.
    """

    name: str
    multiplier: Multiplier
    at: int


@dataclass(frozen=True)
class Prompt:
    """A prompt without its tags.

    Attributes:
        text: what the text encoders read.
        calls: the adapters, in the order in which they are first named; each name once.
    """

    text: str
    calls: tuple[AdapterCall, ...]


def parse(text: str) -> Prompt:
    """Cut the tags out of a prompt; tags of the same name act as the sum of their multipliers.

    Other angle brackets (`<3`, `<cat-toy>`) are text.

    Raises:
        PromptError: a tag without end or name, with something that is no finite number, with too many or unknown
            arguments, or of a hypernetwork.
    """
    calls: dict[str, AdapterCall] = {}
    for tag in _TAG.finditer(text):
        call = _call(tag)
        known = calls.get(call.name)
        if known:
            call = replace(known, multiplier=known.multiplier + call.multiplier)
        calls[call.name] = call
    return Prompt(_TAG.sub("", text), tuple(calls.values()))


def _call(tag: re.Match[str]) -> AdapterCall:
    kind, inside, end = tag.groups()
    if kind == "hypernet":
        raise PromptError("hypernetworks are not supported; remove the tag", tag.string, tag.start())
    if not end:
        raise PromptError("the tag is not closed with >", tag.string, tag.start())
    name, *parts = inside.split(":")
    if not name.strip():
        raise PromptError("the tag names no adapter; write <lora:name:multiplier>", tag.string, tag.start(2))
    return AdapterCall(name, _multiplier(tag, parts, tag.start(2) + len(name) + 1), tag.start())


def _multiplier(tag: re.Match[str], parts: Sequence[str], at: int) -> Multiplier:
    """`te` is 1 and `unet` is `te` unless said; a named argument overrides one by place, as in AUTOMATIC1111."""
    by_place: list[float] = []
    by_name: dict[str, float] = {}
    for part in parts:
        key, equals, value = part.rpartition("=")
        number = _number(tag, value, at + len(key) + len(equals))
        if not equals:
            if len(by_place) == len(_ARGUMENTS):
                raise PromptError("the tag has more than two multipliers, te and unet", tag.string, at)
            by_place.append(number)
        elif key not in _ARGUMENTS or key in by_name:
            fault = "given twice" if key in by_name else f"unknown; known are {' and '.join(_ARGUMENTS)}"
            raise PromptError(f"the argument {key!r} is {fault}", tag.string, at)
        else:
            by_name[key] = number
        at += len(part) + 1
    given = dict(zip(_ARGUMENTS, by_place, strict=False)) | by_name
    te = given.get("te", 1.0)
    return Multiplier(unet=given.get("unet", te), text=te)


def _number(tag: re.Match[str], text: str, at: int) -> float:
    number = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not math.isfinite(number):
        raise PromptError(f"the multiplier {text!r} is not a finite number", tag.string, at)
    return number
