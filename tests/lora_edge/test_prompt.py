"""Tags as AUTOMATIC1111 reads them, and every way to write one wrong."""

import re

import pytest

from lora_edge.errors import PromptError
from lora_edge.multiplier import Multiplier
from lora_edge.prompt import AdapterCall, parse

GOOD = {
    "<lora:ink>": ("ink", 1, 1),
    "<lora:ink:0.8>": ("ink", 0.8, 0.8),
    "<lora:ink:-1>": ("ink", -1, -1),
    "<lora:ink:+1.5>": ("ink", 1.5, 1.5),
    "<lora:ink:2>": ("ink", 2, 2),
    "<lora:ink:.5>": ("ink", 0.5, 0.5),
    "<lora:ink:1.>": ("ink", 1, 1),
    "<lora:ink:5e-1>": ("ink", 0.5, 0.5),
    "<lora:ink: 0.8 >": ("ink", 0.8, 0.8),
    "<lora:ink:0>": ("ink", 0, 0),
    "<lora:ink:0.5:0.7>": ("ink", 0.5, 0.7),
    "<lora:ink:te=0.5>": ("ink", 0.5, 0.5),
    "<lora:ink:unet=0.7>": ("ink", 1, 0.7),
    "<lora:ink:te=0.5:unet=0.7>": ("ink", 0.5, 0.7),
    "<lora:ink:unet=0.7:te=0.5>": ("ink", 0.5, 0.7),
    "<lora:ink:0.5:unet=0.7>": ("ink", 0.5, 0.7),
    "<lora:ink:0.5:te=0.2>": ("ink", 0.2, 0.2),
    "<lyco:ink:0.8>": ("ink", 0.8, 0.8),
    "<lora:my ink v1.2 (final):0.8>": ("my ink v1.2 (final)", 0.8, 0.8),
    "<lora:墨:0.8>": ("墨", 0.8, 0.8),
    "<lora:a=b:0.8>": ("a=b", 0.8, 0.8),
    "<lora:sub/ink>": ("sub/ink", 1, 1),
}


@pytest.mark.parametrize("tag", GOOD)
def test_a_tag(tag: str) -> None:
    name, te, unet = GOOD[tag]
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
    prompt = parse("<lora:a:0.5> <lora:b:1> <lyco:a:0.25:-1>")
    assert prompt.calls == (
        AdapterCall("a", Multiplier(unet=0.5, text=0.5), 0),
        AdapterCall("b", Multiplier(1, 1), 13),
        AdapterCall("a", Multiplier(unet=-1, text=0.25), 24),
    )


BAD = {  # ^ stands before the place that the error must point at
    "x ^<lora:": "not closed",
    "x ^<lora:ink:0.8 and more text": "not closed",
    "^<lora:ink <lora:b:1>": "not closed",
    "x <lora:^>": "names no adapter",
    "x <lora:^:1>": "names no adapter",
    "<lora:^  :1>": "names no adapter",
    "<lora:ink:^>": "'' is not a finite number",
    "<lora:ink:^much>": "'much' is not a finite number",
    "<lora:ink:1:^x>": "'x' is not a finite number",
    "<lora:ink:^nan>": "'nan' is not a finite number",
    "<lora:ink:^-inf>": "'-inf' is not a finite number",
    "<lora:ink:^1e999>": "'1e999' is not a finite number",
    "<lora:ink:^1_0>": "'1_0' is not a finite number",
    "<lora:ink:^0,8>": "'0,8' is not a finite number",
    "<lora:ink:^٣>": "is not a finite number",
    "<lora:ink:te=^x>": "'x' is not a finite number",
    "<lora:ink:^dyn=4>": "the argument 'dyn' is unknown; known are te, unet",
    "<lora:ink:1:^=4>": "the argument '' is unknown",
    "<lora:ink:te=1:^te=2>": "the argument 'te' is given twice",
    "<lora:ink:^te=1=2>": "the argument 'te=1' is unknown",
    "x ^<hypernet:ink:1>": "hypernetworks are not supported",
}


@pytest.mark.parametrize("marked", BAD)
def test_a_malformed_tag_is_refused_at_its_place(marked: str) -> None:
    at, text = marked.index("^"), marked.replace("^", "")
    with pytest.raises(PromptError, match=BAD[marked]) as caught:
        parse(text)
    assert (caught.value.text, caught.value.at) == (text, at)


def test_the_caret_stands_under_the_place_in_a_prompt_of_several_lines() -> None:
    text = "a house\nby the sea <lora:ink:loud>\nat night"
    with pytest.raises(PromptError) as caught:
        parse(text)
    _, line, caret = str(caught.value).splitlines()[-3:]
    assert line.strip() == "by the sea <lora:ink:loud>"
    assert text[caught.value.at] == line[caret.index("^")]
