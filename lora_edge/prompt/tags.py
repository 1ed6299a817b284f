"""Adapter tags: `<lora:name:te:unet:blocks:x>`, with arguments by place or by name.

`<lora:name>`, `<lora:name:multiplier>` and `<lora:name:te:unet>` are AUTOMATIC1111's (modules/extra_networks.py,
parse_prompt); `lyco` and `loractl` are other words for `lora`. The other arguments are those of two extensions of that
program, hako-mikan/sd-webui-lora-block-weight and cheald/sd-webui-loractl:

- `te=`, `unet=`: a number, or a course like `1@0,0@0.5` (`1~0;0~0.5` is the same): weight@position, sorted by position,
  in fractions of the way where the last position is at most 1, else in steps from 0; a weight alone stands at
  position 1. The text encoders, which run once, take a course's first weight.
- `lbw=` or `w=`: 12, 17, 20 or 26 values or a preset's name; `x=` is what `X` stands for in them; `lbwe=` are rules per
  element (`lora_edge.prompt.blockvalues`).
- `start=a`, `stop=b`, `step=a-b`: the UNet's number acts from sampling step a on, counted from 1, and no longer from
  step b on.

Where those programs pass over a mistake, this refuses.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_edge.blocks import RULE_PRESETS, BlockWeights
from lora_edge.multiplier import Course, Multiplier
from lora_edge.prompt import blockvalues
from lora_edge.prompt.excerpt import Excerpt
from lora_edge.prompt.numbers import number, number_or_course, step, steps
from lora_edge.prompt.parsed import AdapterCall, Refuse

TAG = re.compile(r"<(lora|lyco|loractl|hypernet):([^<>]*)(>?)")

_RULE = rf"lbwe=(?!(?:{'|'.join(RULE_PRESETS)})(?::|\Z))[^=]*(?=:[^:=]*=|\Z)"  # goes on over the colons that it holds
_ARGUMENT = re.compile(rf":({_RULE}|[^:]*)")

_LAST = 2**31 - 1  # a sampling step that no request reaches

_PLACES = ("te", "unet", "lbw", "x")
_KNOWN = ("te", "unet", "lbw", "x", "lbwe", "start", "stop", "step")
_ALIASES: Mapping[str, str] = {"w": "lbw"}


def read(tag: re.Match[str], text: Excerpt) -> AdapterCall:
    """What a match of `TAG` in a text asks for.

    Raises:
        PromptError: a tag without end or name, of a hypernetwork, or with an argument that is malformed, unknown, given
            twice, or one too many.
    """
    kind, inside, end = tag.groups()
    refuse = text.refuse
    if kind == "hypernet":
        raise refuse("hypernetworks are not supported; remove the tag", tag.start())
    if not end:
        raise refuse("the tag is not closed with >", tag.start())
    name = inside.split(":", 1)[0]
    if not name.strip():
        raise refuse("the tag names no adapter; write <lora:name:multiplier>", tag.start(2))
    given = _arguments(_ARGUMENT.finditer(tag.string, tag.start(2) + len(name), tag.end(2)), refuse)
    return AdapterCall(name, _multiplier(given, tag[0], refuse), text.place(tag.start()))


def _arguments(arguments: Iterator[re.Match[str]], refuse: Refuse) -> dict[str, tuple[str, int]]:
    """Name -> (text, where it stands)."""
    by_place: dict[str, tuple[str, int]] = {}
    by_name: dict[str, tuple[str, int]] = {}
    for argument in arguments:
        key, equals, value = argument[1].rpartition("=")
        key, at = _ALIASES.get(key, key), argument.start(1)
        if not equals:
            if len(by_place) == len(_PLACES):
                raise refuse(f"the tag has more than {len(_PLACES)} arguments by place: {', '.join(_PLACES)}", at)
            by_place[_PLACES[len(by_place)]] = value, at
        elif key not in _KNOWN or key in by_name:
            fault = "given twice" if key in by_name else f"unknown; known are {', '.join(_KNOWN)}"
            raise refuse(f"the argument {key!r} is {fault}", at)
        else:
            by_name[key] = value, argument.end() - len(value)
    return by_place | by_name


def _multiplier(given: Mapping[str, tuple[str, int]], tag: str, refuse: Refuse) -> Multiplier:
    """`te` is 1 and `unet` is `te` unless said; a named argument overrides one by place, as in AUTOMATIC1111."""
    read: dict[str, Any] = {
        key: _READERS[key](text, at, refuse) for key, (text, at) in given.items() if key in _READERS
    }
    te = read.get("te", 1.0)
    return Multiplier(
        unet=read.get("unet", te),
        text=te.weights[0] if isinstance(te, Course) else te,
        blocks=_blocks(given, read.get("x", 1.0), tag, refuse),
        window=_window(given, read, refuse),
    )


_READERS: Mapping[str, Callable[[str, int, Refuse], Any]] = {
    "te": number_or_course,
    "unet": number_or_course,
    "x": number,
    "start": step,
    "stop": step,
    "step": steps,
}


def _window(given: Mapping[str, tuple[str, int]], read: Mapping[str, Any], refuse: Refuse) -> tuple[int, int] | None:
    bounds = [key for key in ("start", "stop", "step") if key in given]
    if not bounds:
        return None
    at = given[bounds[-1]][1]
    if "step" in bounds and len(bounds) > 1:
        raise refuse("step says it all; leave out start and stop", at)
    start, stop = read.get("step", (read.get("start", 1), read.get("stop", _LAST + 1)))
    if stop <= start:
        raise refuse(f"it stops before step {stop}, which leaves no step from {start} on", at)
    return start, stop - 1


def _blocks(given: Mapping[str, tuple[str, int]], x: float, tag: str, refuse: Refuse) -> BlockWeights | None:
    if "x" in given and "lbw" not in given:
        raise refuse("x has a meaning only beside block weights, lbw", given["x"][1])
    if "lbw" not in given and "lbwe" not in given:
        return None
    rules = blockvalues.rules(*given["lbwe"], refuse) if "lbwe" in given else ()
    if "lbw" not in given:
        return BlockWeights(rules=rules)
    return BlockWeights.listed(blockvalues.values(*given["lbw"], x, tag, refuse), rules)
