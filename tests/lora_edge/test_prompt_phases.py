"""What prompts say in each step: emphasis, schedules, alternation, composition, and tags in schedules.

The expected values were written by hand from AUTOMATIC1111's rules; its own parser, run apart on the same texts without
their tags, says the same. In the tables, what is said is a text without emphasis, or chunks of [text, weight].
"""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest

from lora_edge.errors import PromptError
from lora_edge.prompt import Part, Span, parse
from lora_edge.prompt.parsed import MAX_DEPTH

TABLES = {path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "prompts").glob("*.json")}


def cells(table: str) -> list[Any]:
    """Rows without their remarks."""
    width = min(map(len, TABLES[table]))
    return [row[:width] for row in TABLES[table]]


def same(part: Part, said: Any) -> None:
    chunks = [[[said, 1]] if said else []] if isinstance(said, str) else said
    assert [[span.text for span in chunk] for chunk in part.chunks] == [[text for text, _ in chunk] for chunk in chunks]
    weights = [span.weight for chunk in part.chunks for span in chunk]
    assert weights == pytest.approx([weight for chunk in chunks for _, weight in chunk], rel=1e-12)


@pytest.mark.parametrize(("prompt", "said"), cells("emphasis"))
def test_emphasis(prompt: str, said: Any) -> None:
    (phase,) = parse(prompt).phases(20)
    assert (phase.until, phase.calls) == (20, ())
    same(phase.parts[0], said)


@pytest.mark.parametrize(("prompt", "steps", "phases"), cells("schedules"))
def test_schedules(prompt: str, steps: int, phases: list[Any]) -> None:
    found = parse(prompt).phases(steps)
    assert [phase.until for phase in found] == [until for until, _ in phases]
    for phase, (_, said) in zip(found, phases, strict=True):
        same(phase.parts[0], said)


@pytest.mark.parametrize(("prompt", "parts"), cells("compositions"))
def test_compositions(prompt: str, parts: list[Any]) -> None:
    (phase,) = parse(prompt).phases(20)
    assert [part.weight for part in phase.parts] == [weight for weight, _ in parts]
    for part, (_, said) in zip(phase.parts, parts, strict=True):
        same(part, said)


@pytest.mark.parametrize(("prompt", "steps", "phases"), cells("tags_in_schedules"))
def test_tags_in_schedules_act_while_their_option_holds(prompt: str, steps: int, phases: list[Any]) -> None:
    found = parse(prompt).phases(steps)
    said = [
        (phase.until, "".join(span.text for part in phase.parts for span in part.chunks[0]).strip(" "))
        for phase in found
        if len(phase.parts) == 1
    ]
    assert said in ([], [(until, text.strip(" ")) for until, text, _ in phases])
    assert [" ".join(call.name for call in phase.calls) for phase in found] == [names for *_, names in phases]
    assert [phase.until for phase in found] == [until for until, *_ in phases]


def test_two_alternating_tags_of_one_name_are_two_calls() -> None:
    prompt = parse("[<lora:x>|<lora:x>]")
    assert [phase.calls for phase in prompt.phases(3)] == [(prompt.calls[step % 2],) for step in range(3)]


def test_schedules_of_parts_run_side_by_side() -> None:
    phases = parse("[a:b:2] AND [c:d:3]:0.5 AND e").phases(4)
    assert [phase.until for phase in phases] == [2, 3, 4]
    assert [[part.chunks[0][-1].text for part in phase.parts] for phase in phases] == [
        ["a", " c", " e"],
        ["b", " c", " e"],
        ["b", " d", " e"],
    ]
    assert {tuple(part.weight for part in phase.parts) for phase in phases} == {(1, 0.5, 1)}


@pytest.mark.parametrize("prompt", ["a AND b", "a AND b :0.5", "AND", "at 16:9"])
def test_a_negative_prompt_composes_nothing(prompt: str) -> None:
    (phase,) = parse(prompt, composition=False).phases(20)
    assert phase.parts == (Part(((Span(prompt, 1.0),),), 1.0),)


@pytest.mark.parametrize("opening", ["(", "[", "([", "(a ", "[a:", "[a|", "(a AND (", "a BREAK ("])
def test_brackets_may_be_open_to_a_bound(opening: str) -> None:
    parse(opening * 40).phases(4)
    if "AND" in opening:
        return
    depth = opening.count("(") + opening.count("[")
    text = "<lora:x> " + opening * 50_000
    with pytest.raises(PromptError, match=f"more than {MAX_DEPTH} brackets are open") as caught:
        parse(text)
    assert text[: caught.value.at].count(opening[0]) == MAX_DEPTH // depth or depth == 1


@pytest.mark.parametrize(
    "piece",
    ["(a)", "[a:b:3]", "[a|b]", "a ", " ", ":", ")", "]", "(]", "[)", "a AND ", "BREAK ", "\\", "<", "#\n", "|"],
)
def test_long_prompts_are_read(piece: str) -> None:
    """Minutes, were any step of the reading quadratic."""
    text = piece * (20_000 // len(piece))
    try:
        phases = parse(text).phases(3)
    except PromptError as error:
        assert "brackets are open" in str(error)
    else:
        assert phases[-1].until == 3


def test_text_without_special_characters_is_said_as_it_is() -> None:
    letters = string.ascii_lowercase + " .,;-_'\"!?{}<>*0123456789\n墨é"
    source = random.Random(5)
    for _ in range(300):
        text = "".join(source.choices(letters, k=source.randint(1, 40))).rstrip()
        (phase,) = parse(text).phases(source.randint(1, 30))
        assert phase.parts == (Part(((Span(text, 1.0),) if text else (),), 1.0),)


def test_junk_is_read_or_refused_and_its_phases_reach_the_end() -> None:
    source = random.Random(6)
    words = ["(", ")", "[", "]", ":", "|", "\\", "a", "b,c", ":1.2)", ":5]", ":0.5]", " AND ", "BREAK", "<lora:x>"]
    words += ["<lora:x:0@0,1@1>", "<lora:x:y>", "<", ">", "#", "\n", "3", ".5", "-", "é", " "]
    read = 0
    for _ in range(3000):
        text = "".join(source.choices(words, k=source.randint(1, 25)))
        steps = source.choice([1, 2, 7, 20])
        try:
            prompt = parse(text)
            phases = prompt.phases(steps)
        except PromptError as error:
            assert error.text == text
            assert 0 <= error.at <= len(text)
            continue
        read += 1
        untils = [phase.until for phase in phases]
        assert untils == sorted(set(untils))
        assert untils[-1] == steps
        assert all(set(phase.calls) <= set(prompt.calls) for phase in phases)
        assert all(a.parts != b.parts or a.calls != b.calls for a, b in zip(phases, phases[1:], strict=False))
        kept = {
            letter
            for phase in phases
            for part in phase.parts
            for chunk in part.chunks
            for span in chunk
            for letter in span.text
        }
        assert kept <= set(text)
    assert read > 1000
