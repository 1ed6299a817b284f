"""Numbers by module path against PEFT's own look-up, and expressions that mean harm."""

import random

import pytest
from peft.utils.other import get_pattern_key

from lora_edge.peftpatterns import MAX_EXPRESSIONS, MAX_LENGTH, Patterns

PARTS = ["down_blocks", "mid_block", "0", "1", "attn1", "to_q", "to_out", "net", "ff"]
KEYS = [
    "to_q",
    "attn1.to_q",
    "^down_blocks.0.attn1",
    "0",
    r"down_blocks\.\d\.attn1",
    "mid_block.*",
    "to_.",
    "q",
    "^to_q",
]


def wanted(items: dict[str, float], module: str) -> float | None:
    return items.get(get_pattern_key(list(items), module))


def test_the_first_key_that_matches_counts_as_in_peft() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(3000):
        module = ".".join(rng.choices(PARTS, k=rng.randint(1, 5)))
        keys = rng.sample([*KEYS, module, f"^{module}", module.partition(".")[2] or "x"], rng.randint(1, 6))
        items = {key: float(number) for number, key in enumerate(keys)}
        value = Patterns(items).find(module)
        assert value == wanted(items, module), (items, module)
        found += value is not None
    assert found > 1000


def test_a_number_for_every_module_costs_no_search() -> None:
    """They are looked up: every key tried on every module would be 25 million matches."""
    paths = [f"down_blocks.{index}.to_q" for index in range(5000)]
    patterns = Patterns({path: float(index) for index, path in enumerate(paths)})
    assert [patterns.find(f"x.{path}") for path in paths] == [float(index) for index in range(5000)]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("(a+)+b", "at most one of"),
        ("(.*)*", "at most one of"),
        ("(", "no regular expression"),
        ("a)(b", "no regular expression"),
        ("x{99999999999}", "no regular expression"),
        ("(?i)a", "no regular expression"),
        ("a|" * MAX_LENGTH, f"at most {MAX_LENGTH} are read"),
    ],
)
def test_expressions_that_mean_harm_are_refused(key: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Patterns({key: 1.0})


def test_too_many_expressions_are_refused() -> None:
    with pytest.raises(ValueError, match=f"has {MAX_EXPRESSIONS + 1} regular expressions"):
        Patterns({f"a{number}|b": 1.0 for number in range(MAX_EXPRESSIONS + 1)})
