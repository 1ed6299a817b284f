"""What an adapter takes is told from its header, is what it takes, and bounds what hostile files can make of it."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge.adapterfile import AdapterFile, read_adapter
from lora_edge.cost import Cost
from lora_edge.errors import AdapterError, AdapterMismatch, AdapterTooLarge
from lora_edge.slots import Slot, SlotTable

WIDE = SlotTable(
    "unet",
    (Slot("a", 400, 600), Slot("c", 60, 80, (3, 3))),
    {"n": 600},
)
LAYERS = {"a": (600, 400), "c": (80, 60, 3, 3)}

# kind -> tensors of both layers; few numbers that stand for many lanes
FILES: dict[str, dict[str, tuple[int, ...]]] = {
    "lora": {"a.lora_down.weight": (9, 400), "a.lora_up.weight": (600, 9)},
    "tucker": {"c.lora_down.weight": (2, 60), "c.lora_mid.weight": (400, 2, 3, 3), "c.lora_up.weight": (80, 400)},
    "loha": {
        **{f"a.hada_w{half}_a": (600, 7) for half in (1, 2)},
        **{f"a.hada_w{half}_b": (7, 400) for half in (1, 2)},
    },
    "loha of full rank": {
        **{f"a.hada_w{half}_a": (600, 60) for half in (1, 2)},
        **{f"a.hada_w{half}_b": (60, 400) for half in (1, 2)},
    },
    "loha tucker": {
        **{f"c.hada_t{half}": (300, 1, 3, 3) for half in (1, 2)},
        **{f"c.hada_w{half}_a": (300, 80) for half in (1, 2)},
        **{f"c.hada_w{half}_b": (1, 60) for half in (1, 2)},
    },
    "lokr whole": {"a.lokr_w1": (20, 20), "a.lokr_w2": (30, 20)},
    "lokr": {"a.lokr_w1": (20, 20), "a.lokr_w2_a": (30, 2), "a.lokr_w2_b": (2, 20)},
    "lokr tucker": {
        "c.lokr_w1": (4, 4),
        "c.lokr_t2": (500, 1, 3, 3),
        "c.lokr_w2_a": (500, 20),
        "c.lokr_w2_b": (1, 15),
    },
    "dora": {"a.lora_down.weight": (1, 400), "a.lora_up.weight": (600, 1), "a.dora_scale": (600, 1)},
    "ia3": {"a.weight": (600,), "a.on_input": ()},
    "full": {"c.diff": (80, 60, 3, 3), "c.diff_b": (80,)},
    "norm": {"n.w_norm": (600,), "n.b_norm": (600,)},
    "glora": {
        "c.a1.weight": (60, 1),
        "c.a2.weight": (1, 60),
        "c.b1.weight": (80, 1),
        "c.b2.weight": (1, 60, 3, 3),
    },
    "glora of full rank": {
        "a.a1.weight": (400, 300),
        "a.a2.weight": (300, 400),
        "a.b1.weight": (600, 300),
        "a.b2.weight": (300, 400),
    },
    "oft": {"a.oft_blocks": (300, 2, 2), "a.rescale": (600, 1)},
    "boft": {"c.oft_blocks": (3, 20, 4, 4)},
    "sparse": {
        "a.lora_down.weight": (1, 400),
        "a.lora_up.weight": (600, 1),
        "a.bias_indices": (2, 3),
        "a.bias_values": (3,),
        "a.bias_size": (2,),
    },
}


class Base:
    def weight(self, component: str, slot: str) -> Any:
        return np.ones(LAYERS[slot], np.float32)

    def bias(self, component: str, slot: str) -> Any:
        return None


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, save: Any) -> AdapterFile:
    tensors = {f"lora_unet_{name}": np.full(shape, 0.5, np.float32) for name, shape in FILES[request.param].items()}
    for name, values in {"bias_indices": [[0, 1, 2], [0, 1, 2]], "bias_size": [600, 400], "on_input": 0}.items():
        if f"lora_unet_a.{name}" in tensors:
            tensors[f"lora_unet_a.{name}"] = np.array(values)
    return read_adapter(save(tensors, f"{request.param}.safetensors"))


def test_the_cost_is_what_it_takes(file: AdapterFile) -> None:
    cost = file.cost([WIDE])
    adapter = file.fit([WIDE], base=Base(), max_bytes=cost.nbytes)
    assert adapter.nbytes == cost.nbytes > 0
    assert cost.lanes == sum(
        getattr(form, "rank", 0) for forms in adapter.components["unet"].slots.values() for form in forms
    )
    assert bool(cost.full_rank) == any("of full rank" in warning for warning in adapter.report.warnings)
    assert bool(cost.full_rank) == (cost.full_rank_bytes > 0)


def test_refused_before_anything_is_read(file: AdapterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Any, name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr("lora_edge.tensorfile.TensorFile.view", forbidden)
    cost = file.cost([WIDE])
    with pytest.raises(AdapterTooLarge, match="would take .* MB in .* lanes.*`lora-edge resize`.*`lora-edge bake`"):
        file.fit([WIDE], base=Base(), max_bytes=cost.nbytes - 1)


def test_memory_stays_within_twice_the_file_and_the_cost(file: AdapterFile) -> None:
    file.fit([WIDE], base=Base())
    weight = 4 * 600 * 400
    tracemalloc.start()
    adapter = file.fit([WIDE], base=Base())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bound = 2 * file.path.stat().st_size + adapter.nbytes + 3 * weight  # of the base, read by a kind that needs it
    assert peak < bound + 1_000_000 + 8 * (1 << 19)


def test_layers_of_full_rank_are_told(save: Any) -> None:
    path = save({"lora_unet_c.diff": np.ones(LAYERS["c"], np.float32), "lora_unet_n.w_norm": np.ones(600, np.float32)})
    file = read_adapter(path)
    taken = 4 * 80 * (80 + 540)
    cost = file.cost([WIDE])
    assert cost == Cost(taken + 4 * 600, 80, ("c of unet",), taken)
    assert str(cost) == "0.2 MB in 80 lanes, 0.2 MB of it in 1 slots of full rank"
    (warning,) = file.fit([WIDE]).report.warnings
    assert warning == "takes 0.2 MB in memory, 0.2 MB of it in 1 slots of full rank (first: c of unet)"


def test_what_does_not_fit_costs_nothing(save: Any) -> None:
    path = save({"lora_unet_what.diff": np.ones((9, 9), np.float32), "lora_unet_c.diff": np.ones(3, np.float32)})
    assert read_adapter(path).cost([WIDE]) == Cost()
    with pytest.raises(AdapterMismatch):
        read_adapter(path).fit([WIDE], max_bytes=0)


def test_lanes_that_are_not_in_the_file_are_not_made(save: Any, tmp_path: Path) -> None:
    """Shapes that pretend to many lanes, each of them empty or tiny."""
    rng = np.random.default_rng(0)
    leaves = sorted({name.split(".", 1)[1] for names in FILES.values() for name in names})
    for _ in range(300):
        tensors = {}
        for leaf in rng.choice(leaves, rng.integers(1, 5), replace=False):
            shape = rng.choice([0, 1, 2, 3, 20, 400, 600], rng.integers(0, 4))
            if np.prod(shape) < 1e6:
                tensors[f"lora_unet_{rng.choice(['a', 'c', 'n'])}.{leaf}"] = np.ones(shape, np.float16)
        if not tensors:
            continue
        try:
            file = read_adapter(save(tensors))
            adapter = file.fit([WIDE], strict=bool(rng.integers(2)), base=Base())
        except AdapterError:
            continue
        assert adapter.nbytes <= file.cost([WIDE]).nbytes
