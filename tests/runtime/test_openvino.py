"""The OpenVINO backend: images as onnxruntime makes them, what stays bound, and what it refuses."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from lora_edge.bundle import Bundle
from lora_edge.errors import BackendUnavailable, BundleDamaged, ComponentMissing, GraphFailed, RequestError
from lora_edge.graph import Graph
from lora_edge.runtime.backends import Wishes, choose
from lora_edge.runtime.engine import Engine
from lora_edge.scope import ALL, LINEAR, LOWRANK, SCOPES, Scope
from lora_edge.slots import SlotTable

pytest.importorskip("openvino")

from lora_edge.runtime.openvino import OpenVinoGraph, check_precision

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, Graph]:
    return {scope.name: opened(bundle, scope) for scope in SCOPES.values()}


def opened(bundle: Bundle, scope: Scope, precision: str = "fp32") -> Graph:
    return choose("openvino", bundle, Wishes(precision=precision, threads=1)).open_graph(
        bundle.component("unet"), scope
    )


def plain(rows: int = 2) -> Feeds:
    random = np.random.default_rng(1)
    return {
        "sample": random.standard_normal((rows, 4, 16, 24), np.float32),
        "timestep": np.array([500], np.float32),
        "encoder_hidden_states": random.standard_normal((rows, 77, 64), np.float32),
    }


def lanes(table: SlotTable, scope: Scope, rank: int, rows: int = 1, seed: int = 3) -> Feeds:
    """Random factors on every slot of a scope, rows of scales for all slots."""
    random = np.random.default_rng(seed)
    ranks = [rank if scope.leaves(slot) else 0 for slot in table]
    feeds = {
        "lora.ranks": np.array(ranks),
        "lora.scales": random.uniform(-1, 1, (rows, sum(ranks))).astype(np.float32),
    }
    for slot, own in zip(table, ranks, strict=True):
        if own:
            feeds[slot.port("down")] = random.standard_normal((slot.patch, own), np.float32) / np.float32(slot.patch)
            feeds[slot.port("up")] = random.standard_normal((own, slot.out_features), np.float32)
    return feeds


def by_onnxruntime(bundle: Bundle, feeds: Feeds) -> np.ndarray:
    """The whole contract's own graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.component("unet").graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("graph", "touched"), [(LINEAR, LINEAR), (LOWRANK, LINEAR), (LOWRANK, LOWRANK), (ALL, LINEAR), (ALL, LOWRANK)]
)
def test_every_graph_is_the_same_network(
    bundle: Bundle, graphs: dict[str, Graph], graph: Scope, touched: Scope, rows: int
) -> None:
    """Rows of scales on slots without lanes too."""
    feeds = plain() | lanes(bundle.component("unet").table, touched, 4, rows)
    got = graphs[graph.name].run(feeds)["out_sample"]
    assert relative(got, by_onnxruntime(bundle, feeds)) <= 2e-5
    assert relative(got, by_onnxruntime(bundle, plain())) > 1e-3


def test_ranks_change_from_run_to_run(bundle: Bundle, graphs: dict[str, Graph]) -> None:
    graph, table = graphs["lowrank"], bundle.component("unet").table
    base = graph.run(plain())["out_sample"]
    for rank in (4, 0, 1, 64, 4, 7):
        feeds = plain() | lanes(table, LOWRANK, rank)
        assert relative(graph.run(feeds)["out_sample"], by_onnxruntime(bundle, feeds)) <= 2e-5, rank
    assert np.array_equal(graph.run(plain())["out_sample"], base)


def test_what_is_fed_no_more_has_its_default_again(bundle: Bundle, graphs: dict[str, Graph]) -> None:
    graph, component = graphs["all"], bundle.component("unet")
    base = graph.run(plain())["out_sample"]
    slot, (norm, channels) = component.table.slots[0], next(iter(component.table.norms.items()))
    changes = {
        slot.port("gain_out"): np.full(slot.out_features, 1.5, np.float32),
        slot.port("bias"): np.ones(slot.out_features, np.float32),
        f"{norm}.weight": np.full(channels, 2, np.float32),
    }
    for name, array in changes.items():
        assert relative(graph.run(plain() | {name: array})["out_sample"], base) > 1e-3, name
        assert np.array_equal(graph.run(plain())["out_sample"], base), name


def test_arrays_are_used_where_they_lie(graphs: dict[str, Graph]) -> None:
    """A plain input that was refilled in place is seen; results are the caller's own; read-only arrays will do."""
    graph, feeds = graphs["linear"], plain()
    first = graph.run(feeds)["out_sample"]
    kept = first.copy()
    feeds["sample"][:] = 0
    second = graph.run(feeds)["out_sample"]
    assert np.array_equal(first, kept) and not np.array_equal(second, kept)
    frozen = plain()
    for array in frozen.values():
        array.flags.writeable = False
    assert np.array_equal(graph.run(frozen)["out_sample"], kept)


def test_a_refused_run_leaves_the_next_one_alone(
    bundle: Bundle, graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, slot = graphs["linear"], next(slot for slot in bundle.component("unet").table if slot.kernel is None)
    base = graph.run(plain())["out_sample"]
    wrong = [
        {slot.port("down"): np.zeros((slot.patch + 1, 4), np.float32)},
        {"lora.ranks": np.zeros(3, np.int64)},
        {"lora.scales": np.zeros((1, 8), np.float32)},
        {"sample": np.zeros((2, 4, 16, 24), np.float64)},
        {"sample": np.zeros((2, 4, 17, 24), np.float32)},
        {"encoder_hidden_states": np.zeros((3, 77, 64), np.float32)},
        {"sample": np.zeros((2, 4, 16, 25), np.float32)},
        {"timestep": np.zeros(3, np.float32)},
        lanes(bundle.component("unet").table, LINEAR, 2, rows=3),
    ]
    for feeds in wrong:
        with pytest.raises(GraphFailed):
            graph.run(plain() | feeds)
        assert np.array_equal(graph.run(plain())["out_sample"], base)
    with monkeypatch.context() as patch:  # a run that gives up half way
        patch.setattr(OpenVinoGraph, "_check_shapes", lambda self, shapes: None)
        with pytest.raises(GraphFailed):
            graph.run(plain() | {"sample": np.zeros((2, 4, 17, 24), np.float32)})
    assert np.array_equal(graph.run(plain())["out_sample"], base)
    with pytest.raises(GraphFailed, match="no input lora.nowhere.up"):
        graph.run(plain() | {"lora.nowhere.up": np.zeros((1, 1), np.float32)})
    with pytest.raises(GraphFailed, match="needs timestep"):
        graph.run({name: array for name, array in plain().items() if name != "timestep"})


def test_images_as_onnxruntime_makes_them(tiny_bundle: Path, styles: Path) -> None:
    """`ink` is of Linear layers alone, `glow` needs the wider graphs."""
    prompts = ["a cat", "a cat <lora:ink:0.8>", "a cat <lora:ink:0.5> <lora:glow:0.7>"]
    engines = {name: Engine.open(tiny_bundle, name, styles, precision="fp32") for name in ("onnxruntime", "openvino")}
    assert engines["openvino"].info["graphs"] == {"text_encoder": "all", "unet": "linear"}
    pictures = {
        name: [np.asarray(engine.generate(prompt, seed=5, steps=4)[0], np.float64) for prompt in prompts]
        for name, engine in engines.items()
    }
    for got, expected in zip(pictures["openvino"], pictures["onnxruntime"], strict=True):
        error = np.square(got - expected).mean()
        assert error == 0 or 10 * np.log10(255**2 / error) >= 50
    assert not np.array_equal(pictures["openvino"][0], pictures["openvino"][1])
    info = engines["openvino"].info
    assert info["graphs"]["unet"] == "lowrank"
    assert (info["backend"], info["precision"], info["providers"]) == ("openvino", "fp32", ["CPU"])
    assert info["device"]


def test_bfloat16_is_close(bundle: Bundle, graphs: dict[str, Graph]) -> None:
    try:
        precision = check_precision("bf16")
    except BackendUnavailable:
        pytest.skip("this processor has no bfloat16")
    assert check_precision(None) == precision
    graph = opened(bundle, LOWRANK, precision)
    feeds = plain() | lanes(bundle.component("unet").table, LOWRANK, 4)
    got, expected = graph.run(feeds)["out_sample"], graphs["lowrank"].run(feeds)["out_sample"]
    unet = bundle.component("unet")
    computed_in = {
        wanted: {
            OpenVinoGraph(half, unet.table, unet.norms(), wanted, threads=1).precision
            for half in unet.parts["openvino"]["lowrank"]
        }
        for wanted in ("fp32", precision)
    }
    assert computed_in == {"fp32": {"f32"}, "bf16": {"bf16"}}
    assert got.dtype == np.float32
    assert 0 < relative(got, expected) <= 5e-2


def test_norms_start_as_the_base_has_them(bundle: Bundle, graphs: dict[str, Graph]) -> None:
    unet = bundle.component("unet")
    held = load_file(unet.graph.parent / "norms.safetensors")
    got = graphs["all"].run(plain() | {name: np.ascontiguousarray(array) for name, array in held.items()})
    assert np.array_equal(got["out_sample"], graphs["all"].run(plain())["out_sample"])


def test_refusals(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match="on the CPU, and not on NPU"):
        choose("openvino", bundle, Wishes(["NPU"]))
    with pytest.raises(BackendUnavailable, match="not in int3"):
        choose("openvino", bundle, Wishes(precision="int3"))
    with pytest.raises(RequestError, match="no slots"):
        choose("openvino", bundle, Wishes(slots="some"))
    unet = bundle.component("unet")
    older = {**bundle.components, "unet": replace(unet, parts={})}
    with pytest.raises(ComponentMissing, match="no graph of the unet for openvino; export it again"):
        choose("openvino", replace(bundle, components=older), Wishes())
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a\x12garbage")
    with pytest.raises(BundleDamaged, match="OpenVINO cannot open"):
        OpenVinoGraph(tmp_path / "broken.onnx", unet.table, {})
    monkeypatch.delitem(sys.modules, "lora_edge.runtime.openvino")
    monkeypatch.delattr(sys.modules["lora_edge.runtime"], "openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'lora-edge\[openvino\]'"):
        choose("openvino", bundle, Wishes())
