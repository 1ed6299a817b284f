"""Tags, and every way to write a prompt wrong, with the place that the error points at."""

import json
import re
from pathlib import Path

import pytest

from lora_edge.errors import PromptError, RequestError
from lora_edge.multiplier import Multiplier
from lora_edge.prompt import AdapterCall, parse

TABLES = {path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "prompts").glob("*.json")}


def test_the_tables_hold_more_than_200_prompts() -> None:
    good = {row[0] for name, rows in TABLES.items() if name != "malformed" for row in rows}
    assert len(good) >= 200
    assert len({marked for marked, _ in TABLES["malformed"]}) >= 80


@pytest.mark.parametrize(("tag", "name", "te", "unet"), TABLES["tags"], ids=lambda cell: str(cell))
def test_a_tag(tag: str, name: str, te: float, unet: float) -> None:
    prompt = parse(f"an apple {tag}")
    assert prompt.text == "an apple "
    assert prompt.calls == (AdapterCall(name, Multiplier(unet=unet, text=te), 9),)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", ""),
        ("an apple", "an apple"),
        ("<lora:a:1>", ""),
        ("an <lora:a:1> apple", "an  apple"),
        ("an apple, <lora:a:1>, red", "an apple, , red"),
        ("<lora:a:1><lora:b:1> x", " x"),
        ("I <3 apples > pears", "I <3 apples > pears"),
        ("a <cat-toy> on a <lora> mat", "a <cat-toy> on a <lora> mat"),
        ("<wildcard:animals>", "<wildcard:animals>"),
        ("line\n<lora:a:1>\nline", "line\n\nline"),
        ("(apple:1.2) [red:green:0.5] <lora:a:1>", "(apple:1.2) [red:green:0.5] "),
    ],
)
def test_the_text_around_tags_stays(prompt: str, text: str) -> None:
    assert parse(prompt).text == text
    # modules/extra_networks.py removes this from a prompt, whatever the word is
    if "wildcard" not in prompt:
        assert re.sub(r"<(\w+):([^>]+)>", "", prompt) == text


def test_tags_are_listed_one_by_one_in_their_order() -> None:
    prompt = parse("<lora:a:0.5> <lora:b:1>\n# <lora:c:1>\n<lyco:a:0.25:-1>")
    assert prompt.calls == (
        AdapterCall("a", Multiplier(unet=0.5, text=0.5), 0),
        AdapterCall("b", Multiplier(1, 1), 13),
        AdapterCall("a", Multiplier(unet=-1, text=0.25), 37),
    )


@pytest.mark.parametrize(("marked", "message"), TABLES["malformed"])
def test_a_malformed_prompt_is_refused_at_its_place(marked: str, message: str) -> None:
    """In the table, ^ stands before the place that the error must point at."""
    at, text = marked.index("^"), marked.replace("^", "")
    with pytest.raises(PromptError, match=re.escape(message)) as caught:
        parse(text).phases(10)
    assert (caught.value.text, caught.value.at) == (text, at)


def test_options_that_are_malformed_only_together_are_refused_when_they_meet() -> None:
    text = "<lora:x> (a:1[.2|.2.3])"
    with pytest.raises(PromptError, match="'1.2.3' is not a finite number") as caught:
        parse(text).phases(10)
    assert text[caught.value.at :] == "1[.2|.2.3])"


@pytest.mark.parametrize("steps", [0, -1])
def test_a_prompt_has_no_phases_without_steps(steps: int) -> None:
    with pytest.raises(RequestError, match="must be at least 1"):
        parse("a").phases(steps)


def test_the_caret_stands_under_the_place_in_a_prompt_of_several_lines() -> None:
    text = "a house\nby the sea <lora:ink:loud>\nat night"
    with pytest.raises(PromptError) as caught:
        parse(text)
    _, line, caret = str(caught.value).splitlines()[-3:]
    assert line.strip() == "by the sea <lora:ink:loud>"
    assert text[caught.value.at] == line[caret.index("^")]
