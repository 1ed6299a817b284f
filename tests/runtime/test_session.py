"""Sessions keep adapter inputs bound from run to run: every run must be what a fresh session gives."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lora_edge.bundle import Bundle
from lora_edge.errors import GraphFailed, RequestError
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.session import ARENAS, Arena, Session

RANDOM = np.random.default_rng(2)


@pytest.fixture(scope="module")
def path(tiny_bundle: Path) -> Path:
    return Bundle.open(tiny_bundle).component("unet").graph


@pytest.fixture(scope="module")
def plain(path: Path) -> Any:
    """onnxruntime by itself, fed everything anew each time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda feeds: session.run(["out_sample"], feeds)[0]


def inputs(session: Session, rows: int = 2, side: int = 16) -> dict[str, Any]:
    shapes = {"sample": (rows, 4, side, side), "encoder_hidden_states": (rows, 77, 64)}
    made = {name: RANDOM.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {**made, "timestep": np.array([500], session.inputs["timestep"].dtype)}


def test_a_run_knows_nothing_of_the_last_one(path: Path, plain: Any, engine: Engine, styles: Path) -> None:
    session = Session(path, threads=1)
    ink, glow = (engine.load_adapter(styles / name) for name in ("ink.safetensors", "deep/glow.safetensors"))
    mixes: list[list[Any]] = [[(ink, 1.0)], [(ink, 0.5)], [], [(glow, 1.0), (ink, 0.3)], [(glow, 1.0)], [(ink, 1.0)]]
    outputs = []
    for mix in mixes:
        for rows, side in ((2, 16), (1, 16), (2, 8)):
            fed = {**inputs(session, rows, side), **engine.feeds("unet", mix)}
            outputs.append((session.run(fed)["out_sample"], plain(fed)))
    for ours, theirs in outputs:  # at the end, when later runs have had the chance to write over them
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("arena", ARENAS)
def test_arenas_change_nothing_but_memory(path: Path, plain: Any, arena: Arena) -> None:
    session, other = Session(path, threads=1, arena=arena), Session(path, threads=1, arena=arena)
    for side in (16, 8, 16):
        fed = inputs(session, side=side)
        for one in (session, other):
            np.testing.assert_array_equal(one.run(fed)["out_sample"], plain(fed))


def test_an_arena_that_there_is_not_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(RequestError, match="there is no arena 'big'; there are shared, own, none"):
        Engine.open(tiny_bundle, arena="big")


def test_what_is_filled_anew_in_place_is_seen(path: Path, plain: Any, engine: Engine, styles: Path) -> None:
    session, feeds = Session(path, threads=1), engine.feeds("unet", [(engine.load_adapter(styles / "fog"), 1.0)])
    fed = {**inputs(session), **feeds}
    first = session.run(fed)["out_sample"]
    fed["sample"][...] = RANDOM.standard_normal(fed["sample"].shape)
    second = session.run(fed)["out_sample"]
    assert (first != second).any()
    np.testing.assert_array_equal(second, plain(fed))


def test_arrays_that_do_not_lie_in_order(path: Path, plain: Any, engine: Engine, styles: Path) -> None:
    session, feeds = Session(path, threads=1), engine.feeds("unet", [(engine.load_adapter(styles / "fog"), 1.0)])
    turned = {name: np.asfortranarray(array) for name, array in feeds.items()}
    assert not all(array.flags.c_contiguous for array in turned.values())
    fed = inputs(session)
    np.testing.assert_array_equal(session.run({**fed, **turned})["out_sample"], plain({**fed, **feeds}))


def test_what_is_missing_is_said_in_onnxruntimes_words(path: Path) -> None:
    session = Session(path, threads=1)
    fed = inputs(session)
    del fed["encoder_hidden_states"]
    with pytest.raises(GraphFailed, match=r"refused the inputs: Error in execution: .*encoder_hidden_states"):
        session.run(fed)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"sample": np.zeros((2, 3, 16, 16), np.float32)}, id="shape"),
        pytest.param({"sample": np.zeros((2, 4, 16, 16))}, id="type"),
        pytest.param({"nothing": np.zeros(1, np.float32)}, id="name"),
    ],
)
def test_a_run_that_failed_leaves_nothing_behind(path: Path, plain: Any, wrong: dict[str, Any]) -> None:
    session = Session(path, threads=1)
    fed = inputs(session)
    for _ in range(2):
        with pytest.raises(GraphFailed, match="onnxruntime refused the inputs"):
            session.run({**fed, **wrong})
        np.testing.assert_array_equal(session.run(fed)["out_sample"], plain(fed))
