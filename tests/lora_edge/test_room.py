"""Memory that is there at once."""

import mmap

import numpy as np
import pytest

from lora_edge.room import POPULATED, room


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (1000, 3)])
def test_it_is_an_array_like_any_other(shape: tuple[int, ...]) -> None:
    made = room(*shape)
    assert made.dtype == np.float32 and made.shape == shape and made.flags.writeable and made.flags.c_contiguous
    made[...] = 1
    assert made.sum() == made.size


def test_where_the_system_has_no_way_to_ask_for_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POPULATED:
        monkeypatch.delattr(mmap, name, raising=False)
    assert room(4).shape == (4,)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises((OSError, MemoryError)):
        room(1 << 50)
