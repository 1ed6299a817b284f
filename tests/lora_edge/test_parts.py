"""Graphs in parts: what is held is made anew when what it was made of changes, and not otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.errors import GraphFailed
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.graph import Graph, GraphInput
from lora_edge.mix import Mix
from lora_edge.parts import Parts
from lora_edge.ports import has_lanes
from lora_edge.runtime.backends import Wishes, choose
from lora_edge.runtime.session import Session
from lora_edge.scope import LINEAR, LOWRANK, SCOPES, Scope
from lora_edge.slots import HELD, SCALES, Slot

FLOAT = np.dtype(np.float32)
DOWN = "lora.a.down"


class Once:
    """Holds the sum of the prompt, the factors and the scales, and counts how often."""

    inputs: Mapping[str, GraphInput] = {"prompt": GraphInput(("rows", 2), FLOAT)}
    optional: Mapping[str, GraphInput] = {DOWN: GraphInput((2, "r"), FLOAT), SCALES: GraphInput(("rows", "r"), FLOAT)}
    outputs = (f"{HELD}sum",)
    place: Any = None

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        if any(np.isnan(array).any() for array in feeds.values()):
            raise GraphFailed("no number")
        return {f"{HELD}sum": np.array([sum(float(array.sum()) for array in feeds.values())])}


class Step:
    """Adds the latents to it."""

    inputs: Mapping[str, GraphInput] = {
        "sample": GraphInput(("rows", 2), FLOAT),
        f"{HELD}sum": GraphInput((1,), FLOAT),
    }
    optional: Mapping[str, GraphInput] = {}
    outputs = ("out",)
    place: Any = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert feeds.keys() == self.inputs.keys()
        return {"out": feeds["sample"] + feeds[f"{HELD}sum"]}


def feeds(**more: Array) -> dict[str, Array]:
    return {"sample": np.zeros((1, 2), np.float32), "prompt": np.ones((1, 2), np.float32), **more}


def test_what_changes_is_seen_and_what_rests_is_held() -> None:
    once = Once()
    graph = Parts([once, Step()])
    assert (set(graph.inputs), set(graph.optional), graph.outputs) == ({"sample", "prompt"}, {DOWN, SCALES}, ("out",))

    def run(given: dict[str, Array]) -> tuple[float, int]:
        return float(graph.run(given)["out"][0, 0]), once.runs

    given = feeds()
    assert run(given) == (2, 1)
    given["sample"][:] = 5
    assert run(given) == (7, 1)
    assert run(feeds()) == (2, 1), "another array of the same numbers"
    given["prompt"][:] = 2
    assert run(given) == (9, 2), "refilled in place"
    factor, scales = np.ones((2, 1), np.float32), np.ones((1, 1), np.float32)
    assert run(feeds(**{DOWN: factor, SCALES: scales})) == (5, 3)
    assert run(feeds(**{DOWN: factor, SCALES: scales.copy()})) == (5, 3), "a slider that rests"
    assert run(feeds(**{DOWN: factor, SCALES: 2 * scales})) == (6, 4)
    assert run(feeds(**{DOWN: factor.copy(), SCALES: 2 * scales})) == (6, 5), "factors are known by identity"
    assert run(feeds()) == (2, 6), "what is fed no more"


class Placing(Once):
    """Writes where it is told to, as the graphs of backends do."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        ((name, made),) = super().run(feeds).items()
        self.place = made if self.place is None else self.place
        self.place[:] = made
        return {name: self.place}


def test_adapters_used_before_are_back_at_once_while_there_is_room() -> None:
    once = Placing()
    styles = [np.full((2, 1), number, np.float32) for number in range(4)]
    alone = styles[0].nbytes + 8  # a factor that is kept, and a float64
    graph = Parts([once, Step()], room=3 * alone)
    held = graph._holding[0]._held

    def run(style: int, scale: float = 1.0) -> tuple[float, int]:
        scales = np.full((1, 1), scale, np.float32)
        return float(graph.run(feeds(**{DOWN: styles[style], SCALES: scales}))["out"][0, 0]), once.runs

    assert [run(style) for style in (0, 1, 2)] == [(3, 1), (5, 2), (7, 3)]
    assert [run(style) for style in (0, 2, 1, 0)] == [(3, 3), (7, 3), (5, 3), (3, 3)]
    assert run(0, 2.0) == (4, 4), "another multiplier is another sum"
    assert run(1) == (5, 4) and len(held) == 3, "which takes the place of the same adapters' last one"
    places = {id(one.place) for one in held.values()}
    assert run(3) == (9, 5) and len(held) == 3
    assert {id(one.place) for one in held.values()} == places, "written over what was used least recently"
    assert run(0, 2.0) == (4, 5) and run(2) == (7, 6), "which was the third"


class Beside(Placing):
    """Another part that adapters decide."""

    outputs = (f"{HELD}base.a",)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {self.outputs[0]: next(iter(super().run(feeds).values()))}


def test_parts_share_the_room() -> None:
    parts = [Placing(), Beside()]
    styles = [np.full((2, 1), number, np.float32) for number in range(3)]
    graph = Parts([*parts, Step()], room=4 * (styles[0].nbytes + 8))
    for style, runs, held in ((0, 1, 1), (1, 2, 2), (0, 2, 2), (2, 3, 2), (0, 3, 2), (1, 4, 2)):
        graph.run(feeds(**{DOWN: styles[style]}))
        assert [part.runs for part in parts] == [runs, runs]
        assert [len(part._held) for part in graph._holding] == [held, held]


def test_without_room_the_last_adapters_alone_are_held() -> None:
    once = Placing()
    graph = Parts([once, Step()])
    styles = [np.full((2, 1), number, np.float32) for number in range(2)]
    places = set()
    for style, runs in ((0, 1), (0, 1), (1, 2), (0, 3)):
        graph.run(feeds(**{DOWN: styles[style]}))
        (held,) = graph._holding[0]._held.values()
        places.add(id(held.place))
        assert once.runs == runs
    assert len(places) == 1


def test_a_failed_run_holds_nothing() -> None:
    once = Once()
    graph = Parts([once, Step()])
    graph.run(feeds())
    for _ in range(2):
        with pytest.raises(GraphFailed, match="no number"):
            graph.run(feeds(**{SCALES: np.full((1, 1), np.nan, np.float32)}))
    assert graph.run(feeds())["out"][0, 0] == 2
    assert once.runs == 4


def test_a_brief_graph_holds_nothing() -> None:
    once = Once()
    graph = Parts([once, Step()], brief=True)
    assert [float(graph.run(feeds())["out"][0, 0]) for _ in range(2)] == [2, 2]
    assert (once.runs, once.place, graph._holding[0]._held) == (2, None, {})


class Prompt:
    """Twice the prompt, and how often."""

    place: Any = None

    inputs: Mapping[str, GraphInput] = {"prompt": GraphInput(("rows", 2), FLOAT)}
    optional: Mapping[str, GraphInput] = {}
    outputs = (f"{HELD}base.a",)

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        return {f"{HELD}base.a": 2 * feeds["prompt"]}


class Adapted(Once):
    """Takes that beside the adapter."""

    inputs: Mapping[str, GraphInput] = {**Once.inputs, f"{HELD}base.a": GraphInput(("rows", 2), FLOAT)}


def test_what_the_prompt_decides_is_held_when_adapters_change() -> None:
    prompt, once = Prompt(), Adapted()
    graph = Parts([prompt, once, Step()])
    assert (set(graph.inputs), set(graph.optional)) == ({"sample", "prompt"}, {DOWN, SCALES})
    scales = np.ones((1, 1), np.float32)
    for more, expected, runs in (
        ({}, 6, (1, 1)),
        ({SCALES: scales}, 7, (1, 2)),
        ({SCALES: 3 * scales}, 9, (1, 3)),
        ({SCALES: 3 * scales, "prompt": np.full((1, 2), 2, np.float32)}, 15, (2, 4)),
        ({SCALES: 3 * scales, "prompt": np.full((1, 2), 2, np.float32)}, 15, (2, 4)),
        ({}, 6, (3, 5)),
    ):
        assert graph.run(feeds(**more))["out"][0, 0] == expected
        assert (prompt.runs, once.runs) == runs


def test_refusals() -> None:
    graph = Parts([Once(), Step()])
    with pytest.raises(GraphFailed, match="has no input strange"):
        graph.run(feeds(strange=np.zeros(1)))
    with pytest.raises(GraphFailed, match="has no input held.sum"):
        graph.run(feeds(**{f"{HELD}sum": np.zeros(1)}))
    with pytest.raises(GraphFailed, match="needs prompt"):
        graph.run({"sample": np.zeros((1, 2), np.float32)})
    with pytest.raises(GraphFailed, match="1, 3 rows; they must agree"):
        graph.run(feeds(prompt=np.ones((3, 2), np.float32)))


@pytest.mark.parametrize(
    ("backend", "scope"),
    [("onnxruntime", "linear"), ("onnxruntime", "lowrank"), *(("openvino", one) for one in SCOPES)],
)
def test_parts_of_a_bundle(tiny_bundle: Path, backend: str, scope: str) -> None:
    """Nothing is made anew that does not depend on what changes: the prompt, adapters, both, the latents."""
    unet = Bundle.open(tiny_bundle).component("unet")
    opened = {
        path.stem.rpartition("_")[2]: onnxruntime.InferenceSession(path, _silent(), providers=["CPUExecutionProvider"])
        for path in unet.parts[backend][scope]
    }
    gains = scope == "all"  # which change what a layer multiplies by: the prompt alone decides nothing
    assert list(opened) == ["weights", "states", "step"] if gains else ["prompt", "weights", "states", "step"]
    taken = {name: {port.name for port in one.get_inputs()} for name, one in opened.items()}
    adapted = {name: {port.name for port in one.get_overridable_initializers()} for name, one in opened.items()}
    made = {name: {port.name: port.shape for port in one.get_outputs()} for name, one in opened.items()}
    prompted = {slot.name for slot in unet.table if slot.name.endswith(("attn2.to_k", "attn2.to_v"))}
    if not gains:
        assert taken["prompt"] == {"encoder_hidden_states"} and not adapted["prompt"]
        assert made["prompt"].keys() == {f"{HELD}base.{name}" for name in prompted}
    assert not taken["weights"] & {"sample", "timestep", "encoder_hidden_states"}
    assert "encoder_hidden_states" in taken["states"] and not taken["states"] & {"sample", "timestep"}
    assert made["states"].keys() == {HELD + name for name in prompted}
    assert all({"rows", "tokens"} <= {*shape} for shape in made["states"].values()), "axes are the prompt's"
    held = {name for part in (*made.values(),) for name in part if name.startswith(HELD)}
    assert held == {name for part in taken.values() for name in part if name.startswith(HELD)}
    if backend == "openvino":  # which would convert them to its precision in every step
        assert not any(has_lanes(name) for name in taken["step"] | adapted["step"])


def test_results_are_those_of_the_whole_graph(tiny_bundle: Path) -> None:
    unet = Bundle.open(tiny_bundle).component("unet")
    random = np.random.default_rng(0)
    given = {
        "sample": random.standard_normal((2, 4, 16, 16), np.float32),
        "timestep": np.array([300], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 64), np.float32),
    }
    whole = Session(unet.graph, threads=1).run(given)["out_sample"]
    for scope, files in unet.parts["onnxruntime"].items():
        for brief in (False, True):
            graph = Parts([Session(part, threads=1, brief=brief) for part in files], brief=brief)
            for _ in range(2):
                assert np.allclose(graph.run(given)["out_sample"], whole, rtol=0, atol=1e-5), scope


@pytest.mark.parametrize("scope", [LINEAR, LOWRANK], ids=lambda scope: scope.name)
def test_adapters_of_other_ranks_and_rows_follow_each_other(tiny_bundle: Path, scope: Scope) -> None:
    """On every layer, on half of them, on none: what has another shape than before gets memory of its own."""
    unet, random = Bundle.open(tiny_bundle).component("unet"), np.random.default_rng(0)
    whole = Session(unet.graph, threads=1)
    graph = Parts([Session(part, threads=1) for part in unet.parts["onnxruntime"][scope.name]])
    slots = [slot for slot in unet.table if scope.leaves(slot)]
    for every, rank, rows in ((1, 4, 1), (1, 16, 1), (2, 16, 1), (2, 3, 2), (1, 3, 2), (1, 5, 2), (1, 5, 1), (3, 0, 1)):
        forms = {
            slot.name: (
                LowRank(
                    random.standard_normal((slot.patch, rank), np.float32) * np.float32(slot.patch**-0.5),
                    random.standard_normal((rank, slot.out_features), np.float32) * np.float32(0.1),
                ),
            )
            for slot in slots[::every]
        }
        given = {
            "sample": random.standard_normal((rows, 4, 16, 16), np.float32),
            "timestep": np.array([300], np.float32),
            "encoder_hidden_states": random.standard_normal((rows, 77, 64), np.float32),
            **Mix(unet.table, [ComponentForms(forms)]).feeds(np.linspace(0.5, 1, rows, dtype=np.float32)[:, None]),
        }
        expected = whole.run(given)["out_sample"]
        assert np.allclose(graph.run(given)["out_sample"], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_is_held_is_written_where_it_was(tiny_bundle: Path, backend: str) -> None:
    """By adapters of other ranks too; results that are the caller's own are not written over."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    bundle = Bundle.open(tiny_bundle)
    unet, random = bundle.component("unet"), np.random.default_rng(0)
    graph = choose(backend, bundle, Wishes(precision="fp32", threads=1, slots="linear")).open_graph(unet, LINEAR)
    alone = Session(unet.graph, threads=1)
    slot = next(slot for slot in unet.table if slot.name.endswith("attn1.to_q"))
    assert isinstance(graph, Parts)
    seen, made, kept = set(), [], []
    for rows, rank in ((2, 4), (2, 16), (2, 0), (1, 4), (2, 4)):
        given = {
            "sample": random.standard_normal((rows, 4, 16, 16), np.float32),
            "timestep": np.array([300], np.float32),
            "encoder_hidden_states": random.standard_normal((rows, 77, 64), np.float32),
            "lora.ranks": np.array([rank * (one == slot) for one in unet.table]),
            "lora.scales": np.ones((1, rank), np.float32),
            slot.port("down"): random.standard_normal((slot.patch, rank), np.float32),
            slot.port("up"): random.standard_normal((rank, slot.out_features), np.float32),
        }
        made.append(graph.run(given)["out_sample"])
        kept.append(made[-1].copy())
        assert np.allclose(made[-1], alone.run(given)["out_sample"], rtol=0, atol=2e-5 * np.abs(made[-1]).max())
        held = {name: array for part in graph._holding for name, array in next(iter(part._held.values())).made.items()}
        seen.add(held[f"{HELD}{slot.name}"].ctypes.data if rows == 2 and len(made) <= 3 else 0)
    assert len(seen - {0}) == 1
    assert all(np.array_equal(one, copy) for one, copy in zip(made, kept, strict=True))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_adapters_that_come_back_do_what_they_did(tiny_bundle: Path, backend: str) -> None:
    """Bit for bit, with other prompts, multipliers, ranks and rows in between."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    bundle = Bundle.open(tiny_bundle)
    unet, random = bundle.component("unet"), np.random.default_rng(0)
    slots = [slot for slot in unet.table if slot.kernel is None]

    def opened(room: int) -> Graph:
        return choose(backend, bundle, Wishes(precision="fp32", threads=1, room=room)).open_graph(unet, LINEAR)

    def style(rank: int) -> Mix:
        def factors(slot: Slot) -> LowRank:
            down = random.standard_normal((slot.patch, rank), np.float32) * np.float32(slot.patch**-0.5)
            return LowRank(down, random.standard_normal((rank, slot.out_features), np.float32) * np.float32(0.1))

        return Mix(unet.table, [ComponentForms({slot.name: (factors(slot),) for slot in slots})])

    styles = [style(rank) for rank in (4, 16, 4)]
    prompts = random.standard_normal((2, 2, 77, 64), np.float32)
    sample = random.standard_normal((2, 4, 16, 16), np.float32)
    graph, alone, rows = opened(1 << 30), opened(0), np.ones((1, 1), np.float32)
    for which, prompt, strengths in (
        (0, 0, rows), (1, 0, rows), (0, 0, rows), (2, 1, 0.5 * rows), (0, 1, rows), (1, 0, np.array([[1], [0.5]])),
        (0, 1, rows), (1, 0, rows), (None, 0, rows), (2, 0, rows), (2, 1, 0.5 * rows), (None, 1, rows),
    ):  # fmt: skip
        fed = styles[which].feeds(np.asarray(strengths, np.float32)) if which is not None else {}
        given = {"sample": sample, "timestep": np.array([9], np.float32), "encoder_hidden_states": prompts[prompt]}
        np.testing.assert_array_equal(graph.run(given | fed)["out_sample"], alone.run(given | fed)["out_sample"])


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options
