"""What lies beside an adapter, as A1111 and civitai's helpers write it, and as strangers may."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lora_edge.sidecar import MAX_BYTES, PREVIEWS, Sidecar, read_sidecar

# As AUTOMATIC1111 saves it from the Lora tab.
USER = {
    "description": "an ink drawing",
    "sd version": "SDXL",
    "activation text": "ink style, black and white,  ,ink style",
    "preferred weight": 0.8,
    "negative text": "colour",
    "notes": "weak at 0.5",
}
# The parts of a civitai.info that are read, between some that are not.
CIVITAI = {
    "id": 7,
    "name": "v2.0",
    "baseModel": "SD 1.5",
    "trainedWords": ["inkpunk", "nvinkpunk, ink"],
    "model": {"name": "Inkpunk", "type": "LORA", "nsfw": False},
    "images": [{"url": "x", "meta": {"seed": 1}}],
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "ink.v1.safetensors"
    path.write_bytes(b"")
    return path


def put(adapter: Path, ending: str, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path = adapter.with_name(adapter.stem + ending)
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_is_no_fault(adapter: Path) -> None:
    assert read_sidecar(adapter) == Sidecar()


def test_what_the_user_noted(adapter: Path) -> None:
    put(adapter, ".json", USER)
    assert read_sidecar(adapter) == Sidecar(
        words=("ink style", "black and white"),
        negative="colour",
        preferred=0.8,
        base="SDXL",
        description="an ink drawing",
        notes="weak at 0.5",
    )


def test_what_civitai_says(adapter: Path) -> None:
    put(adapter, ".civitai.info", CIVITAI)
    assert read_sidecar(adapter) == Sidecar(words=("inkpunk", "nvinkpunk", "ink"), base="SD 1.5", title="Inkpunk")


def test_the_user_goes_before_civitai(adapter: Path) -> None:
    put(adapter, ".json", USER)
    put(adapter, ".civitai.info", CIVITAI)
    both = read_sidecar(adapter)
    assert (both.words, both.base, both.title) == (("ink style", "black and white"), "SDXL", "Inkpunk")
    put(adapter, ".json", {**USER, "activation text": "", "sd version": "Unknown", "preferred weight": 0})
    left = read_sidecar(adapter)
    assert (left.words, left.base, left.preferred) == (("inkpunk", "nvinkpunk", "ink"), "SD 1.5", None)


def test_a_text_file_describes(adapter: Path) -> None:
    put(adapter, ".description.txt", "second")
    assert read_sidecar(adapter).description == "second"
    put(adapter, ".txt", "first\n")
    assert read_sidecar(adapter).description == "first"
    put(adapter, ".json", USER)
    assert read_sidecar(adapter).description == "an ink drawing"


def test_pictures_in_the_order_of_the_lora_tab(adapter: Path) -> None:
    assert PREVIEWS[:4] == (".png", ".preview.png", ".jpg", ".preview.jpg")
    for ending in reversed(PREVIEWS):
        path = put(adapter, ending, "")
        assert read_sidecar(adapter).preview == path


def test_folders_and_packs(tmp_path: Path) -> None:
    folder = tmp_path / "fog.v2"
    folder.mkdir()
    (tmp_path / "fog.v2.json").write_text('{"notes": "a folder"}')
    assert read_sidecar(folder).notes == "a folder"
    (tmp_path / "ink.json").write_text('{"notes": "the original"}')
    assert read_sidecar(tmp_path / "ink.pack.safetensors").notes == "the original"
    (tmp_path / "ink.pack.json").write_text('{"notes": "the pack"}')
    assert read_sidecar(tmp_path / "ink.pack.safetensors").notes == "the pack"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", ""),
        ("<html>", "ink.v1.json is not JSON"),
        ("[" * 100_000, "ink.v1.json is not JSON"),
        ('{"notes": "a', "ink.v1.json is not JSON"),
        ("[1]", "ink.v1.json is not a JSON object"),
        ("1" * 5000, "ink.v1.json is not JSON"),
        (" " * (MAX_BYTES + 1), f"ink.v1.json is larger than {MAX_BYTES} bytes"),
        ('{"notes": 7}', "'notes' beside it is of type int and was left out"),
        ('{"notes": {"a": 1}}', "'notes' beside it is of type dict and was left out"),
        ('{"activation text": ["a"]}', "'activation text' beside it is of type list and was left out"),
        ('{"preferred weight": "loud"}', "'preferred weight' beside it is of type str and was left out"),
        ('{"preferred weight": NaN}', "'preferred weight' beside it is of type float and was left out"),
        ('{"preferred weight": 1e999}', "'preferred weight' beside it is of type float and was left out"),
        ('{"preferred weight": true}', "'preferred weight' beside it is of type bool and was left out"),
        ('{"preferred weight": 1%s}' % ("0" * 400), "'preferred weight' beside it is of type int and was left out"),
        ('{"preferred weight": "0.7"}', ""),
        ('{"notes": null, "sd version": null}', ""),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_wrong_is_left_out_and_said(content: str, fault: str, adapter: Path) -> None:
    put(adapter, ".json", content)
    found = read_sidecar(adapter)
    assert found.faults == ((fault,) if fault else ())
    assert found.notes == "" and found.preferred in (None, 0.7)


@pytest.mark.parametrize(
    "content",
    [{"trainedWords": "a"}, {"trainedWords": [1]}, {"model": ["x"]}, {"model": {"name": 3}}, {"baseModel": []}],
)
def test_wrong_types_from_civitai(content: Any, adapter: Path) -> None:
    put(adapter, ".civitai.info", content)
    found = read_sidecar(adapter)
    assert len(found.faults) == 1 and found.words == () and found.title == found.base == ""


def test_long_texts_are_cut(adapter: Path) -> None:
    put(adapter, ".json", {"notes": "x" * 100_000})
    put(adapter, ".civitai.info", {"trainedWords": ["y" * 100_000, *map(str, range(1000))]})
    found = read_sidecar(adapter)
    assert len(found.notes) == 10_000 and len(found.words) == 100 and len(found.words[0]) == 10_000


def test_pipes_and_folders_beside_it_are_not_opened(adapter: Path) -> None:
    os.mkfifo(adapter.with_name("ink.v1.json"))
    adapter.with_name("ink.v1.civitai.info").mkdir()
    adapter.with_name("ink.v1.png").mkdir()
    assert read_sidecar(adapter) == Sidecar()
