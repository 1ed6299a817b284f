"""Block weights as tags write them, `lbw=` and `lbwe=`, after hako-mikan/sd-webui-lora-block-weight."""

import hashlib
import re

from lora_edge.blocks import BLOCKS, ORDERS, PRESETS, RULE_PRESETS, Rule
from lora_edge.multiplier import is_finite
from lora_edge.prompt.numbers import items, number
from lora_edge.prompt.parsed import Refuse

MAX_RULES = 100

_RANDOM = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}
_RELATIVE = re.compile(r"X([+-][0-9.]+)?")


def values(text: str, at: int, x: float, tag: str, refuse: Refuse) -> list[float]:
    """The values of a list, or of a preset by its name.

    A value is a number; `R`, a random number from 0 to 1; `U`, one from -0.5 to 1.5; or `X`, `X+0.2`, `X-0.2`, relative
    to `x`. Random numbers have three decimals, as there; here they depend on the text of the tag and on the place in
    the list alone: value i, counted from 0, is drawn with the first 8 bytes of SHA-256 of "i:tag" (UTF-8, big-endian,
    over 2^64), so that a prompt makes the same image again and another spelling of the tag another one.

    Args:
        text: 12, 17, 20 or 26 values with commas between them, or a name of `PRESETS`.
        at: where it stands.
        x: what X stands for.
        tag: the whole tag.
        refuse: makes the error.

    Raises:
        PromptError: another count, an unknown preset, or a value that is none of these.
    """
    given = items(PRESETS.get(text.strip(), text), ",", at)
    if len(given) == 1:
        raise refuse(f"there is no preset of block weights called {text!r}; known are {', '.join(PRESETS)}", at)
    if len(given) not in ORDERS:
        counts = " or ".join(map(str, ORDERS))
        raise refuse(f"{len(given)} block weights are given; give {counts}, or a preset's name", at)
    return [_value(item.strip(), place, x, f"{index}:{tag}", refuse) for index, (item, place) in enumerate(given)]


def _value(text: str, at: int, x: float, seed: str, refuse: Refuse) -> float:
    if text in _RANDOM:
        low, high = _RANDOM[text]
        drawn = int.from_bytes(hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        return round(low + (high - low) * drawn, 3)
    if relative := _RELATIVE.fullmatch(text):
        value = x + (number(relative[1], at + 1, refuse, "block weight") if relative[1] else 0)
        if is_finite(value):
            return value
    return number(text, at, refuse, "block weight")


def rules(text: str, at: int, refuse: Refuse) -> tuple[Rule, ...]:
    """Element rules, `blocks:elements:ratio` with commas between them, or a name of `RULE_PRESETS`.

    Blocks are names with blanks between them, or ranges, `IN05-OUT05`; elements are pieces of LDM layer names, `attn`,
    `attn2_to_k`; NOT in front of either picks the others; nothing picks all. Where several rules pick a layer, the last
    one counts.

    Raises:
        PromptError: an unknown preset or block, a rule of other than three fields, a ratio that is no number, or more
            than `MAX_RULES`.
    """
    preset = RULE_PRESETS.get(text.strip(), text)
    if ":" not in preset:
        raise refuse(f"there is no element rule called {text!r}; known are {', '.join(RULE_PRESETS)}", at)
    found = items(preset, ",", at)
    if len(found) > MAX_RULES:
        raise refuse(f"more than {MAX_RULES} element rules", found[MAX_RULES][1])
    return tuple(_rule(item, place, refuse) for item, place in found)


def _rule(text: str, at: int, refuse: Refuse) -> Rule:
    fields = items(text, ":", at)
    if len(fields) != 3:
        raise refuse(f"the rule {text!r} is not blocks:elements:ratio", at)
    (blocks, blocks_at), (elements, elements_at), (ratio, ratio_at) = fields
    other_blocks, names = _words(blocks, blocks_at, refuse)
    other_elements, pieces = _words(elements, elements_at, refuse)
    found = [block for name, place in names for block in _range(name, place, refuse)]
    return Rule(
        tuple(found),
        other_blocks,
        tuple(piece for piece, _ in pieces),
        other_elements,
        number(ratio, ratio_at, refuse, "ratio"),
    )


def _words(text: str, at: int, refuse: Refuse) -> tuple[bool, list[tuple[str, int]]]:
    """Whether NOT stands in front, and the words after it."""
    words = [(word, place) for word, place in items(text, " ", at) if word]
    others = bool(words) and words[0][0] == "NOT"
    if others and len(words) == 1:
        raise refuse("NOT stands before nothing", words[0][1])
    return others, words[others:]


def _range(text: str, at: int, refuse: Refuse) -> tuple[str, ...]:
    """The blocks from one to another, in either direction."""
    ends = items(text, "-", at)
    for name, place in ends:
        if name not in BLOCKS:
            raise refuse(f"there is no block called {name!r}; known are BASE, IN00-IN11, M00, OUT00-OUT11", place)
    if len(ends) > 2:
        raise refuse(f"{text!r} is not a range of two blocks", at)
    first, last = sorted(BLOCKS.index(name) for name, _ in (ends[0], ends[-1]))
    return BLOCKS[first : last + 1]
