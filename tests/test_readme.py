"""The README's own words, run: its Python and its shell lines, on a bundle of the demo model."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(emoji_bundle: Path, tmp_path: Path) -> Path:
    """A folder that looks like the checkout, with the bundle already made."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(emoji_bundle, tmp_path / "demo" / "mine")
    return tmp_path


def test_python(place: Path) -> None:
    (code,) = blocks("python")
    lines = [line for line in code.splitlines() if not line.startswith("lora_edge.export(")]
    assert len(lines) == len(code.splitlines()) - 1, "the export is what the fixture did"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True, cwd=place
    )
    assert (place / "cat.png").is_file()
    assert done.stdout.strip().endswith("3")


def test_shell(place: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("lora-edge ")]
    assert len(lines) == 10
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "export":
            words += ["--help"]
        subprocess.run([sys.executable, "-m", "lora_edge", *words], check=True, capture_output=True, cwd=place)
    assert (place / "cat.png").is_file()


def test_pictures_and_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
