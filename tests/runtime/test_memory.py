"""Pages of files that nobody has written to go back to the system; by its own count, and with nothing lost."""

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_edge import Engine
from lora_edge.runtime import memory
from lora_edge.runtime.memory import forget_pages

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are there")


def resident(path: Path) -> int:
    """kB of all maps of a file that are in memory, as the system says."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-", line):
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "held" / "weights.data"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_what_was_only_read_goes_and_comes_again(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert held[:] == file.read_bytes()
        assert resident(file) == SIZE // 1024
        forget_pages(file.parent)
        assert resident(file) == 0
        assert held[:] == file.read_bytes()


def test_what_was_written_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as held:
        held[5000] = 77
        expected = held[:]
        forget_pages(file.parent)
        assert held[:] == expected
        assert held[5000] == 77 != file.read_bytes()[5000]


def test_files_of_other_folders_stay(file: Path, tmp_path: Path) -> None:
    beside = tmp_path / "held beside"  # begins with the same letters
    beside.mkdir()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert held[-1] == 255
        forget_pages(beside)
        assert resident(file)


@pytest.mark.parametrize("name", ["MAPS", "SMAPS"])
def test_without_a_list_of_maps_nothing_happens(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(memory, name, tmp_path / "none")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as held:
        assert held[-1] == 255
        forget_pages(file.parent)
        assert resident(file)


def test_openvino_lets_go_of_weights_that_it_has_laid_out(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    engine = Engine.open(tiny_bundle, backend="openvino", precision="fp32", threads=1)
    ports = engine.bundle.component("unet").config
    random = np.random.default_rng(0)
    inputs = {
        "sample": random.standard_normal((1, ports["in_channels"], 8, 8), np.float32),
        "timestep": np.array([5], np.float32),
        "encoder_hidden_states": random.standard_normal((1, 4, ports["cross_attention_dim"]), np.float32),
    }
    (weights,) = (tiny_bundle / "unet").glob("*.data")
    first = engine.run("unet", inputs)["out_sample"]
    assert resident(weights.resolve()) < weights.stat().st_size / 1024 / 4
    np.testing.assert_array_equal(engine.run("unet", inputs)["out_sample"], first)
