"""Numbers of a file in pieces, by several threads: as numpy reads them, and none that is not finite or not there."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge import packdata
from lora_edge.arrays import FloatArray
from lora_edge.packdata import HALVES, SINGLES, Stored, fill, room

HEADER = b"twelve bytes"
KINDS = [(HALVES, np.dtype("<f2")), (SINGLES, np.dtype("<f4"))]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packdata, "PIECE", 7)


def filled(path: Path, count: int, stored: Stored) -> tuple[bool, FloatArray]:
    data = np.full(count, 5, np.float32)
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(3) as threads:
        return all(fill(data, file, len(HEADER), stored, threads)), data


@pytest.mark.parametrize(("stored", "dtype"), KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 50, 700])
def test_they_are_what_numpy_reads(tmp_path: Path, stored: Stored, dtype: np.dtype[Any], count: int) -> None:
    numbers = np.random.default_rng(count).standard_normal(count).astype(dtype)
    (path := tmp_path / "x").write_bytes(HEADER + numbers.tobytes())
    whole, data = filled(path, count, stored)
    assert whole
    np.testing.assert_array_equal(data, numbers.astype(np.float32))


@pytest.mark.parametrize(("stored", "dtype"), KINDS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_one_that_is_not_finite_is_found(tmp_path: Path, stored: Stored, dtype: np.dtype[Any], value: str) -> None:
    for place in range(30):
        numbers = np.full(30, np.finfo(dtype).max, dtype)
        numbers[place] = float(value)
        (path := tmp_path / "x").write_bytes(HEADER + numbers.tobytes())
        assert not filled(path, 30, stored)[0]


@pytest.mark.parametrize(("stored", "dtype"), KINDS)
def test_a_file_that_ends_before_is_found(tmp_path: Path, stored: Stored, dtype: np.dtype[Any]) -> None:
    whole = HEADER + np.ones(30, dtype).tobytes()
    for end in range(len(HEADER), len(whole)):
        (path := tmp_path / "x").write_bytes(whole[:end])
        assert not filled(path, 30, stored)[0]


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_room_is_an_array_like_any_other(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for _ in range(2):
        made = room(count)
        assert made.dtype == np.float32 and made.shape == (count,) and made.flags.writeable
        made[:] = 1
        assert made.sum() == count
        monkeypatch.delattr(mmap, "MAP_PRIVATE", raising=False)  # a system without it
