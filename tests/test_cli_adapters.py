"""`lora-edge loras` and `lora-edge inspect` over a folder such as people have."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from lora_edge.cli import app
from lora_edge.cli.text import counts, group, plain, size, span, table
from lora_edge.errors import AdapterNotFound, RequestError

SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"


def told(*words: object) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(styles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ink with notes and a preview, a PEFT folder, an LCM adapter, an SDXL file, a web page and a pickle."""
    made = tmp_path_factory.mktemp("lora") / "lora"
    shutil.copytree(styles, made)
    ink = load_file(made / "ink.safetensors")
    save_file(ink, made / "ink.safetensors", {"ss_output_name": "inky", "ss_tag_frequency": '{"a": {"pen": 3}}'})
    (made / "ink.json").write_text(json.dumps({"activation text": "ink style, pen", "preferred weight": 0.8}))
    Image.new("RGB", (2, 2)).save(made / "ink.preview.png")
    shutil.copy(made / "deep" / "glow.safetensors", made / "glow-lcm.safetensors")
    half = {"lora_down": np.zeros((1, 2048), np.float16), "lora_up": np.zeros((640, 1), np.float16)}
    save_file({f"{SDXL}.{leaf}.weight": array for leaf, array in half.items()}, made / "portrait.safetensors")
    (made / "page.safetensors").write_text("<html>")
    (made / "old.pt").write_bytes(b"\x80\x02")
    return made


def test_a_listing_with_everything(folder: Path, tiny_bundle: Path) -> None:
    rows = {row["name"]: row for row in json.loads(told("loras", folder, "--bundle", tiny_bundle, "--json"))}
    assert list(rows) == ["fog", "glow", "glow-lcm", "ink", "old", "page", "portrait"]
    assert {name: row["fits"] for name, row in rows.items()} == {
        "fog": True, "glow": True, "glow-lcm": True, "ink": True, "old": False, "page": False, "portrait": False,
    }  # fmt: skip
    assert len({tuple(row) for row in rows.values()}) == 1  # keys
    ink = rows["ink"]
    assert (ink["alias"], ink["trigger_words"], ink["multiplier"]) == ("inky", ["ink style", "pen"], 0.8)
    assert ink["preview"] == str(folder / "ink.preview.png") and ink["tags"] == [["pen", 3]]
    assert re.search(r"; made for SDXL, this bundle is custom \(cross-attention width \d+\)$", rows["portrait"]["fit"])
    assert "web page" in rows["page"]["refused"] and "lora-edge convert" in rows["old"]["refused"]


def test_a_listing_for_people(folder: Path, tiny_bundle: Path) -> None:
    lines = told("loras", folder, "--bundle", tiny_bundle).splitlines()
    head = lines[0]
    assert re.split(r"  +", head) == [
        "name",
        "alias",
        "kind",
        "rank",
        "base",
        "fits",
        "hash",
        "preview",
        "trigger words",
    ]
    [ink] = [line for line in lines if line.startswith("ink ")]
    assert ink[head.index("alias") :].startswith("inky ") and ink[head.index("fits") :].startswith("yes ")
    assert ink.endswith("ink.preview.png  ink style, pen")
    notes = lines[lines.index("") + 1 :]
    assert [note.split(":")[0] for note in notes] == ["glow-lcm", "old", "page", "portrait"]
    assert notes[0] == "glow-lcm: is an LCM adapter: use --sampler lcm --steps 4 --guidance 1"
    assert notes[3].startswith("portrait: does not fit: ")


def test_without_a_bundle_nothing_is_said_of_fitting(folder: Path) -> None:
    assert "fits" not in told("loras", folder).splitlines()[0]
    assert all(row["fits"] is None for row in json.loads(told("loras", folder, "--json")))


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert told("loras", tmp_path) == f"{tmp_path} holds no adapters\n"
    assert json.loads(told("loras", tmp_path, "--json")) == []
    with pytest.raises(AdapterNotFound, match="does not exist"):
        told("loras", tmp_path / "gone")


def test_a_sheet_shows_every_adapter_under_its_name(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    words = ("loras", folder, "--bundle", tiny_bundle, "--steps", 2, "--prompt", "a red apple", "--sheet")
    assert told(*words, out).endswith(f"Wrote {out}.\n")
    first = Image.open(out).convert("RGB")
    told(*words, tmp_path / "again.png", "--multiplier", 0)
    second = Image.open(tmp_path / "again.png").convert("RGB")
    assert first.size == second.size
    assert not np.array_equal(np.asarray(first), np.asarray(second))  # the adapters act
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "sheet.png"]


def test_a_sheet_that_cannot_be(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["loras", str(folder), "--sheet", "x.png"])
    assert done.exit_code == 2 and "--bundle" in done.output
    for out, reason in ((tmp_path / "x.jpg", "does not end in .png"), (tmp_path / "gone" / "x.png", "does not exist")):
        with pytest.raises(RequestError, match=reason):
            told("loras", folder, "--bundle", tiny_bundle, "--sheet", out)
    assert not list(tmp_path.iterdir())


def test_an_inspection_for_people(folder: Path, tiny_bundle: Path) -> None:
    text = told("inspect", folder / "ink.safetensors", "--bundle", tiny_bundle)
    groups = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert groups == ["ink", "contents", "use", "training", "in the bundle"]
    facts = dict(re.findall(r"^  (\S+(?: \S+)*)  +(.+)$", text, re.MULTILINE))
    assert facts["kinds"] == "lora" and facts["ranks"] == "4"
    assert facts["trigger words"] == "ink style, pen" and facts["multiplier"] == "0.8"
    assert facts["fits"].startswith("yes: ") and facts["fits"].endswith(" 0 unused")
    assert facts["memory"].endswith("kB")


def test_an_inspection_counts_what_goes_unused(styles: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    tensors = load_file(styles / "ink.safetensors")
    extra = {f"{SDXL}.lora_{part}.weight": np.zeros((2, 2), np.float32) for part in ("down", "up")}
    save_file({**tensors, **extra}, tmp_path / "mixed.safetensors")
    about: dict[str, Any] = json.loads(
        told("inspect", tmp_path / "mixed.safetensors", "--bundle", tiny_bundle, "--json")
    )
    assert about["fits"] is False and set(about["report"]["unused"]) == set(extra)
    assert about["report"]["applied"] == len(tensors)
    assert about["cost"]["nbytes"] >= about["report"]["bytes"] > 0
    text = told("inspect", tmp_path / "mixed.safetensors", "--bundle", tiny_bundle)
    assert f"  fits    in part: {len(tensors)} tensors applied, 2 unused" in text
    assert "would go unused" in text and f"{SDXL}.lora_down.weight" in text


@pytest.mark.parametrize("form", ["safetensors", "onnx_adapter"])
def test_what_was_packed(form: str, styles: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    glow = styles / "deep" / "glow.safetensors"
    out = tmp_path / ("glow.pack.safetensors" if form == "safetensors" else "glow")
    told("pack", glow, "--bundle", tiny_bundle, "--format", form, "-o", out)
    [packed] = tmp_path.iterdir()
    about = json.loads(told("inspect", packed, "--bundle", tiny_bundle, "--json"))
    assert about["fits"] is True and about["report"]["layers"] == {"unet": inspected_layers(glow, tiny_bundle)}
    assert about["kinds"] == (["lora"] if form == "safetensors" else ["onnx_adapter"])
    assert "fits    yes: " in told("inspect", packed, "--bundle", tiny_bundle)
    if form == "safetensors":
        [row] = json.loads(told("loras", tmp_path, "--bundle", tiny_bundle, "--json"))
        assert (row["name"], row["alias"], row["pack"]["name"]) == ("glow.pack", "glow", "glow")
        assert "pack, lora" in told("loras", tmp_path)


def inspected_layers(path: Path, bundle: Path) -> int:
    layers: dict[str, int] = json.loads(told("inspect", path, "--bundle", bundle, "--json"))["report"]["layers"]
    return layers["unet"]


def test_names_from_strangers_do_not_steer_the_terminal(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "ink.safetensors", tmp_path / "a\x1b[2Jb.safetensors")
    (tmp_path / "a\x1b[2Jb.json").write_text(json.dumps({"activation text": "\x1b]0;x\x07 \ud800"}))
    for text in (told("loras", tmp_path), told("inspect", tmp_path / "a\x1b[2Jb.safetensors")):
        assert all(letter.isprintable() for letter in text.replace("\n", ""))
        assert "a�[2Jb" in text


def test_tables() -> None:
    made = table(("name", "none", "n"), [("a", "", 1), ("墨水", None, 22), ("é" * 3, "", 3)])
    assert made == "name  n\na     1\n墨水  22\nééé   3"
    assert table(("x",), [("y" * 60,)]).endswith("y" * 47 + "…")
    assert group("title", {"a": "", "b": None, "c": []}) == ""
    assert group("title", {"a": 1, "long": [1, 2]}) == "title\n  a     1\n  long  1, 2"
    assert group("title", {"many": list(range(14))}).endswith("10, 11 and 2 more")
    assert plain(" a\n\tb \x00") == "a b �"
    assert counts({"8": 3}) == "8" and counts({"8": 3, "4": 1}) == "8 (3), 4 (1)"
    assert (size(3), size(1_500), size(2_340_000), size(5 * 10**9)) == ("3 bytes", "1.5 kB", "2.3 MB", "5.0 GB")
    assert (span([]), span([4]), span([4, 8, 32])) == ("", "4", "4-32")
