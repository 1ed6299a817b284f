"""JSON beside the tensors: settings of PEFT, in a folder or a header, and what a pack says of itself."""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from lora_edge.packhead import KEY
from lora_edge.peftconfig import TYPES, UNREAD

from .draft import Draft
from .headers import NUMBERS, WRONG

KEYS = (
    *("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
    *("bias", "init_lora_weights", "feedforward_modules", *UNREAD),
)
ALPHAS = (*NUMBERS, 1e30, -1e300, float("nan"), float("inf"), 10**400)
PATTERNS = (
    *("to_q", ".*", "(a+)+$", "(a|a)*$", "(.*)*x", "((((", "[", "a{1,99999999999}", "(?P<a>", r"\1", "*", "a" * 9999),
    *("(?=" * 200, "^down", "to_.", "(" * 500, "x{65535}", "", "|".join("abc" * 50)),
)


def _text(rng: Random, folder: bool, items: Mapping[str, Any]) -> bytes:
    component = rng.choice(("unet", "text_encoder", "", "vae"))
    return json.dumps(items if folder else {f"{component}.{key}": value for key, value in items.items()}).encode()


def wrong_settings(rng: Random, folder: bool) -> bytes:
    items = {"peft_type": rng.choice(list(TYPES)), "r": None, "lora_alpha": 4}
    for key in rng.sample(KEYS, rng.choice((1, 2, 5))):
        items[key] = rng.choice((*WRONG, *ALPHAS, "none", "lora_only", "pissa", "OFT", "LORA"))
    return _text(rng, folder, items)


def odd_patterns(rng: Random, folder: bool) -> bytes:
    pattern = {rng.choice(PATTERNS): rng.choice((1, 2, 4, *ALPHAS)) for _ in range(rng.choice((1, 3)))}
    key = rng.choice(("rank_pattern", "alpha_pattern", "feedforward_modules"))
    said = rng.choice(PATTERNS) if key == "feedforward_modules" and rng.random() < 0.6 else pattern
    return _text(rng, folder, {"peft_type": rng.choice(list(TYPES)), "r": None, key: said})


def odd_scales(rng: Random, folder: bool) -> bytes:
    items = {"r": rng.choice((1, 2, 3, 4, *ALPHAS)), "lora_alpha": rng.choice(ALPHAS), "alpha": rng.choice(ALPHAS)}
    return _text(rng, folder, {"peft_type": rng.choice(list(TYPES)), **items, "use_rslora": rng.random() < 0.5})


def no_settings(rng: Random, folder: bool) -> bytes:
    """Text that is no JSON object, or a large one."""
    return rng.choice(
        (b"", b"[]", b"null", b"{", b'{"a"', b"\xff\xfe{}", b"{" * 9999, b"[" * 90000, b'{"a":' * 40000, b"1" * 5000)
        + (json.dumps({str(key): [] for key in range(2000)}).encode(), b'{"r":' + b"9" * 5000 + b"}", bytes(300))
    )


MUTATIONS: Mapping[str, Callable[[Random, bool], bytes]] = {
    made.__name__.replace("_", " "): made for made in (wrong_settings, odd_patterns, odd_scales, no_settings)
}


def wrong_words_of_a_pack(rng: Random, made: Draft) -> bytes:
    """One value anywhere in what a pack says of itself, made something else."""
    about = json.loads(made.metadata[KEY])
    holder, key = rng.choice(list(_places(about)))
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice((*WRONG, *NUMBERS, float("nan"), 1e39, "x" * 5000))
    made.metadata = {**made.metadata, KEY: json.dumps(about)}
    return made.dump()


def no_words_of_a_pack(rng: Random, made: Draft) -> bytes:
    made.metadata = {**made.metadata, KEY: no_settings(rng, True).decode("utf-8", "replace")}
    return made.dump()


def _places(item: Any) -> Any:
    """(container, key) of every value in JSON."""
    if isinstance(item, dict | list):
        for key, value in list(item.items() if isinstance(item, dict) else enumerate(item)):
            yield item, key
            yield from _places(value)


OF_PACKS: Mapping[str, Callable[[Random, Draft], bytes]] = {
    made.__name__.replace("_", " "): made for made in (wrong_words_of_a_pack, no_words_of_a_pack)
}
