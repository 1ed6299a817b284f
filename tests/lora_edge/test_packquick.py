"""Packs of lanes alone, read in one go: what the reference reader finds, and all else is left to the slow way."""

import mmap
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_edge import errors, pack
from lora_edge.adapter import Adapter, Report
from lora_edge.bundle import Bundle
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.opening import open_adapter
from lora_edge.pack import read_pack, write_pack


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, every pack is read tensor by tensor."""
    return lambda: monkeypatch.setattr(pack, "read_quick", lambda *_: None)


def lanes(bundle: Bundle, every: int = 1, fill: float | None = None) -> Adapter:
    """Lanes of one or two scales on every n-th slot of every component."""
    random = np.random.default_rng(every)
    parts = {}
    for table in bundle.tables:
        slots = {}
        for index, slot in list(enumerate(table))[::every]:
            forms = []
            for scale in (0.5, 0.25)[: 1 + index % 2]:
                down = random.standard_normal((slot.patch, 3), np.float32)
                if fill is not None:
                    down[-1, -1] = fill
                forms.append(LowRank(down, random.standard_normal((3, slot.out_features), np.float32), scale))
            slots[slot.name] = tuple(forms)
        parts[table.component] = ComponentForms(slots)
    return Adapter("plain", ("lora",), parts, {"note": 'ünïcode "quoted" }{'}, Report())


def same(one: Adapter, other: Adapter) -> None:
    assert (one.name, one.kinds, one.metadata, one.path) == (other.name, other.kinds, other.metadata, other.path)
    assert one.nbytes == other.nbytes and set(one.report.applied) == set(other.report.applied)
    assert one.components.keys() == other.components.keys()
    for component, part in one.components.items():
        assert list(part.slots) == list(other.components[component].slots)
        for name, forms in part.slots.items():
            for form, twin in zip(forms, other.components[component].slots[name], strict=True):
                assert isinstance(form, LowRank) and isinstance(twin, LowRank) and form.scale == twin.scale
                for array, wanted in ((form.down, twin.down), (form.up, twin.up)):
                    assert array.dtype == wanted.dtype == np.float32 and array.flags.c_contiguous
                    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("every", [1, 5])
def test_both_ways_read_the_same(
    bundle: Bundle, tmp_path: Path, slow: Callable[[], None], dtype: str, every: int
) -> None:
    path = write_pack(lanes(bundle, every), bundle, tmp_path / "plain.pack.safetensors", dtype)
    tables = {table.component: table for table in bundle.tables}
    assert pack.read_quick(path, tables, pack.prefixes(bundle.tables), np.inf)
    quick = open_adapter(path, bundle)
    stored = load_file(path)
    assert set(quick.report.applied) == set(stored)
    for component, part in quick.components.items():
        for name, forms in part.slots.items():
            slot = bundle.component(component).table.by_name[name]
            down = np.concatenate([form.down for form in forms if isinstance(form, LowRank)], axis=1)
            np.testing.assert_array_equal(down, stored[slot.port("down")].astype(np.float32))
    slow()
    same(quick, open_adapter(path, bundle))


def lies_in_a_map(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


@pytest.mark.parametrize("every", [1, 5])
def test_a_map_holds_what_reading_finds(bundle: Bundle, tmp_path: Path, every: int) -> None:
    path = write_pack(lanes(bundle, every), bundle, tmp_path / "plain.pack.safetensors", "fp32")
    before = path.read_bytes()
    mapped = open_adapter(path, bundle, map_packs=True)
    same(mapped, open_adapter(path, bundle))
    singles = [forms[0] for part in mapped.components.values() for forms in part.slots.values() if len(forms) == 1]
    assert singles and all(
        isinstance(one, LowRank) and lies_in_a_map(one.down) and lies_in_a_map(one.up) for one in singles
    )
    assert isinstance(singles[0], LowRank)
    singles[0].down[...] = 0
    assert path.read_bytes() == before, "the file is nobody's to write"


def test_what_cannot_be_mapped_is_read(bundle: Bundle, styles: Path, tmp_path: Path) -> None:
    path = write_pack(lanes(bundle), bundle, tmp_path / "x.pack.safetensors", "fp16")
    for other in (path, styles / "ink.safetensors"):
        same(open_adapter(other, bundle, map_packs=True), open_adapter(other, bundle))
    whole = write_pack(lanes(bundle), bundle, path, "fp32", force=True).read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(errors.AdapterFileDamaged):
        open_adapter(path, bundle, map_packs=True)
    path.write_bytes(whole)
    with pytest.raises(errors.AdapterTooLarge):
        open_adapter(path, bundle, max_bytes=1000, map_packs=True)


def test_every_number_of_float16(bundle: Bundle, tmp_path: Path) -> None:
    """All 63,488 finite ones come out as numpy converts them, the smallest included; the others are refused."""
    codes = np.arange(65536, dtype=np.uint16)
    halves = codes.view(np.float16)
    finite = halves[np.isfinite(halves)]
    slot = max(bundle.component("unet").table, key=lambda slot: slot.patch)
    rank = -(-finite.size // slot.patch)
    down = np.resize(finite, (slot.patch, rank)).astype(np.float32)
    form = LowRank(down, np.ones((rank, slot.out_features), np.float32))
    adapter = Adapter("x", (), {"unet": ComponentForms({slot.name: (form,)})}, {}, Report())
    path = write_pack(adapter, bundle, tmp_path / "x.pack.safetensors")
    [read] = read_pack(path, bundle).components["unet"].slots[slot.name]
    assert isinstance(read, LowRank)
    np.testing.assert_array_equal(read.down.view(np.uint32), down.view(np.uint32))
    whole = path.read_bytes()
    for code in (0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7C01):
        path.write_bytes(whole[:-2] + code.to_bytes(2, "little"))
        with pytest.raises(errors.AdapterValueError, match="not finite in 'lora"):
            read_pack(path, bundle)


def test_numbers_whose_squares_are_too_large_are_numbers(bundle: Bundle, tmp_path: Path) -> None:
    path = write_pack(lanes(bundle, 5, 3e38), bundle, tmp_path / "x.pack.safetensors", "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pack(path, bundle).nbytes
        whole = path.read_bytes()
        for value in ("inf", "-inf", "nan"):
            path.write_bytes(whole[:-4] + np.float32(value).tobytes())
            with pytest.raises(errors.AdapterValueError, match="not finite in 'lora"):
                read_pack(path, bundle)


def test_what_is_read_stays_when_the_file_changes(bundle: Bundle, tmp_path: Path) -> None:
    for dtype in ("fp16", "fp32"):
        path = write_pack(lanes(bundle), bundle, tmp_path / f"{dtype}.pack.safetensors", dtype)
        first, again = read_pack(path, bundle), read_pack(path, bundle)
        path.write_bytes(b"cut")
        same(first, again)


def test_other_files_are_left_to_the_slow_way(bundle: Bundle, tmp_path: Path) -> None:
    path = write_pack(lanes(bundle), bundle, tmp_path / "x.pack.safetensors", "fp32")
    whole, tables, marks = path.read_bytes(), {t.component: t for t in bundle.tables}, pack.prefixes(bundle.tables)
    data = 8 + int.from_bytes(whole[:8], "little")
    assert pack.read_quick(path, tables, marks, 4 * len(whole))
    assert pack.read_quick(path, tables, marks, len(whole) - data - 1) is None, "too large"
    assert pack.read_quick(path, {}, marks, np.inf) is None
    assert pack.read_quick(tmp_path / "none", tables, marks, np.inf) is None
    others = {
        "cut": whole[:-4],
        "longer": whole + bytes(4),
        "in the header": whole[: data - 100],
        "another offset": whole.replace(b'"data_offsets":[0,', b'"data_offsets":[1,', 1),
        "another dtype": whole.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1),
        "another shape": whole.replace(b'"shape":[', b'"shape":[0', 1),
        "a length of nothing": bytes(8) + whole[8:],
        "an endless length": b"\xff" * 8 + whole[8:],
        "nothing": b"",
        "brackets": (10**5).to_bytes(8, "little") + b"[" * 10**5 + whole[data:],
    }
    for name, made in others.items():
        path.write_bytes(made)
        assert pack.read_quick(path, tables, marks, np.inf) is None, name
        with pytest.raises(errors.AdapterError):
            open_adapter(path, bundle)
