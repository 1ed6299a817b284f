"""What is wrong with settings of PEFT, in a folder or a header."""

import json
import os
from pathlib import Path
from typing import Any

from lora_edge.peftconfig import METADATA_KEY, UNREAD

from .case import BLOCK, DAMAGED, MISMATCH, UNKNOWN, VALUE, Case, Desk, peft_pair

Q = f"base_model.model.{BLOCK}.attn1.to_q"
AT = "{peft}/adapter_config.json"


def _folder(name: str, settings: Any, error: Any, sentence: str) -> Case:
    return Case(name, lambda desk: desk.open(desk.peft(peft_pair(), settings)), error, sentence)


def _header(name: str, settings: Any, error: Any, sentence: str) -> Case:
    def act(desk: Desk) -> Any:
        text = settings if isinstance(settings, str) else json.dumps(settings)
        return desk.open(desk.save(peft_pair(), {METADATA_KEY: text}))

    return Case(name, act, error, sentence)


def _pipe(desk: Desk) -> Path:
    path = desk.peft(peft_pair(), "")
    (path / "adapter_config.json").unlink()
    os.mkfifo(path / "adapter_config.json")
    return path


CASES = (
    _folder("another kind", {"peft_type": "OFT"}, UNKNOWN, f"{AT} is of the PEFT kind 'OFT'; lora-edge reads LORA, .*"),
    *(
        _folder(f"unread: {key}", {key: ["x"]}, UNKNOWN, f"{AT} sets {key}, which lora-edge does not read")
        for key in UNREAD
    ),
    _folder(
        "whole biases",
        {"bias": "all"},
        UNKNOWN,
        f"{AT} sets bias to 'all': whole biases, which lora-edge does not read",
    ),
    _folder(
        "another base",
        {"init_lora_weights": "pissa_niter_4"},
        UNKNOWN,
        f"{AT} was trained from 'pissa_niter_4', which changes the base; convert it to LoRA in PEFT",
    ),
    _folder(
        "a promise that is not kept",
        {"use_dora": True},
        MISMATCH,
        rf"{{peft}}: 1 of 1 modules cannot be used: '{Q}' has no lora_magnitude_vector, which {AT} promises.*",
    ),
    _folder(
        "a rank that is not the tensors'",
        {"r": 3},
        MISMATCH,
        rf"{{peft}}: 1 of 1 modules cannot be used: '{Q}' has rank 2 where {AT} says 3(.0)?(; made .*)?",
    ),
    Case("a pipe for settings", lambda desk: desk.open(_pipe(desk)), DAMAGED, f"{AT} is not a regular file"),
    _folder("settings of a megabyte", " " * 1_000_001, DAMAGED, f"{AT} is larger than 1000000 bytes"),
    _folder("no JSON", "{", DAMAGED, f"{AT} is not JSON: Expecting property name .*"),
    _folder("nested deeply", "[" * 100_000, DAMAGED, f"{AT} is not JSON: maximum recursion depth exceeded .*"),
    _folder("no object", "[]", DAMAGED, f"{AT} is not a JSON object"),
    _folder("a rank of letters", {"r": "four"}, DAMAGED, f"{AT} gives r as 'four' where a number belongs"),
    _folder("an endless alpha", {"lora_alpha": 10**400}, VALUE, f"{AT} gives lora_alpha as 10*, which is not finite"),
    _folder(
        "an alpha that is none", '{"lora_alpha": NaN}', VALUE, f"{AT} gives lora_alpha as nan, which is not finite"
    ),
    _folder(
        "a scale beyond float32",
        {"lora_alpha": 1e300},
        VALUE,
        rf"{{peft}}: '{Q}' has a scale of 5e\+299, which is beyond float32; the file is broken",
    ),
    _folder(
        "a pattern of a list", {"alpha_pattern": [1]}, DAMAGED, f"{AT} gives alpha_pattern as something else than .*"
    ),
    _folder(
        "a feed-forward of numbers",
        {"feedforward_modules": [1]},
        DAMAGED,
        f"{AT} gives feedforward_modules as something else than a list of names",
    ),
    _folder(
        "an expression that takes for ever",
        {"rank_pattern": {"(a+)+": 2}},
        DAMAGED,
        AT + r" has '\(a\+\)\+'; at most one of \* \+ \? \{ is read there \(in rank_pattern\)",
    ),
    _folder(
        "no expression",
        {"feedforward_modules": "("},
        DAMAGED,
        rf"{AT} has '\(', which is no regular expression \(in feedforward_modules\)",
    ),
    _folder(
        "a long expression",
        {"alpha_pattern": {"a|" * 101: 1}},
        DAMAGED,
        rf"{AT} has a regular expression of 202 characters; at most 200 are read there \(in alpha_pattern\)",
    ),
    _folder(
        "many expressions",
        {"alpha_pattern": {f"a{index}|b": 1 for index in range(65)}},
        DAMAGED,
        rf"{AT} has 65 regular expressions; at most 64 are read there \(in alpha_pattern\)",
    ),
    _header(
        "no JSON in the header", "{", DAMAGED, f"{METADATA_KEY} of {{file}} is not JSON: Expecting property name .*"
    ),
    _header(
        "many components",
        {f"part{index}.r": 2 for index in range(17)},
        DAMAGED,
        f"{METADATA_KEY} of {{file}} names more than 16 components",
    ),
)
