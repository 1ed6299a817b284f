"""Images whose adapters cannot share a batch, and what a change of multipliers moves."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_edge
from lora_edge import Multiplier
from lora_edge.errors import ComponentMissing, RequestError
from lora_edge.runtime.engine import Engine

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def gains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IA3 file, which acts on a whole batch."""
    path = tmp_path_factory.mktemp("gains") / "gains.safetensors"
    weight = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    save_file({f"{LAYER}.weight": weight, f"{LAYER}.on_input": np.zeros((), np.float32)}, path)
    return path


def test_images_with_different_gains_run_apart(
    engine: Engine, styles: Path, gains: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ia3, ink = engine.load_adapter(gains), engine.load_adapter(styles / "ink.safetensors")
    adapters = [[(ia3, 0.5)], [(ink, 0.7)], [(ia3, 0.5), (ink, 1.0)], [(ia3, 1.0)]]
    with caplog.at_level(logging.WARNING, "lora_edge"):
        batch = engine.generate("a cat", seed=4, steps=3, batch=4, adapters=adapters)
    assert engine.info["runs"] == ["images 1, 3", "images 2", "images 4"]
    assert "made apart are images 1, 3; images 2; images 4" in caplog.text
    for row, image in enumerate(batch):
        [alone] = engine.generate("a cat", seed=4 + row, steps=3, adapters=adapters[row])
        error = np.mean((np.asarray(image, float) - np.asarray(alone, float)) ** 2)
        assert error <= 255**2 / 10**6, "at least 60 dB"
    engine.generate("a cat", steps=1, batch=2, adapters=[(ia3, 0.5)])
    assert engine.info["runs"] == ["images 1, 2"], "what is the same for all stays together"


def test_a_slider_moves_no_weights(engine: Engine, styles: Path) -> None:
    """21 multipliers: the arrays of the layers are the same ones each time, and few bytes are others."""
    ink, glow = (engine.load_adapter(styles / name) for name in ("ink.safetensors", "deep/glow.safetensors"))
    first = engine.feeds("unet", [(ink, 1.0), (glow, 0.5)])
    lanes = first["lora.scales"].shape[1]
    for multiplier in np.linspace(0.1, 2, 21):
        feeds = engine.feeds("unet", [(ink, float(multiplier)), (glow, 0.5)])
        assert [name for name in feeds if feeds[name] is not first[name]] == ["lora.scales"]
        assert engine.info["bytes_copied"]["unet"] == 4 * lanes


def test_a_step_schedule_moves_no_weights(engine: Engine, styles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = engine._components.graph("unet")
    run, fed = graph.run, []
    monkeypatch.setattr(graph, "run", lambda feeds: fed.append(feeds) or run(feeds))
    engine.generate("a cat <lora:ink:1@0,0@0.5><lora:fog:0.3>", seed=1, steps=6, lora_dir=styles)
    layers = {name for name in fed[0] if name.startswith("lora.") and name != "lora.scales"}
    for feeds in fed[1:]:
        assert all(feeds[name] is fed[0][name] for name in layers)
    scales = [tuple(feeds["lora.scales"][0]) for feeds in fed]
    assert len(set(scales)) == 3, "1, 0.5, 0, and then it stays"


def test_multipliers_by_row_may_be_of_every_sort(engine: Engine, styles: Path) -> None:
    ink = engine.load_adapter(styles / "ink.safetensors")
    rows: list[Any] = [0.5, Multiplier(unet=0.2, text=0.9), np.float32(1)]
    feeds = engine.feeds("unet", [(ink, rows), (ink, 1.0)])
    scales = feeds["lora.scales"][:, 0] / engine.feeds("unet", [(ink, 1.0)])["lora.scales"][0, 0]
    np.testing.assert_allclose(scales, [1.5, 1.2, 2.0])
    for wrong in ("much", [[1.0]], [], None, [0.1, float("nan")]):
        with pytest.raises(lora_edge.LoraEdgeError, match="finite number"):
            engine.feeds("unet", [(ink, wrong)])


def test_plain_numbers_do_what_multipliers_do(engine: Engine, styles: Path) -> None:
    """However pairs are given, and whichever way they take."""
    ink, glow = (engine.load_adapter(styles / name) for name in ("ink.safetensors", "deep/glow.safetensors"))
    for numbers in ([0.5], [2], [0.5, 0.25], [0.5, -0.5, 0.75], [1.0, 0.0, -1], [0.0], []):
        pairs = list(zip((ink, glow, ink), numbers, strict=False))
        expected = engine.feeds("unet", [(adapter, Multiplier(float(number))) for adapter, number in pairs])
        ways: list[Any] = [pairs, tuple(pairs), [list(pair) for pair in pairs]]
        ways.append([(adapter, np.float32(number)) for adapter, number in pairs])
        for given in ways:
            fed = engine.feeds("unet", given)
            assert fed.keys() == expected.keys()
            assert all(np.array_equal(fed[name], expected[name]) for name in fed)
            assert all(fed[name].dtype == expected[name].dtype for name in fed)
    for adapters in ([], [(ink, 1.0)], [(ink, Multiplier(1.0))]):
        with pytest.raises(ComponentMissing, match="nothing"):
            engine.feeds("nothing", adapters)
    wrongs: tuple[Any, ...] = (ink, [ink], [(ink,)], [("ink", 1.0)], [(ink, 1.0, 1.0)], [[(ink, 1.0)]], 5)
    for wrong in wrongs:
        with pytest.raises((RequestError, TypeError)):
            engine.feeds("unet", wrong)


def test_block_weights_scale_whole_modules(engine: Engine, styles: Path, tmp_path: Path) -> None:
    """Off in all output blocks, half in the others: the same as a file of the other modules at half."""
    tensors = load_file(styles / "deep" / "glow.safetensors")
    inner = {name: tensor for name, tensor in tensors.items() if "_up_blocks_" not in name}
    assert 0 < len(inner) < len(tensors)
    save_file(inner, tmp_path / "inner.safetensors")
    weights = ",".join(["1", *["0.5"] * 13, *["0"] * 12])
    settings: dict[str, Any] = {"seed": 3, "steps": 3}
    shutil.copy(styles / "deep" / "glow.safetensors", tmp_path / "copy.safetensors")
    [weighted] = engine.generate(f"a cat <lora:copy:1:lbw={weights}>", lora_dir=tmp_path, **settings)
    [expected] = engine.generate("a cat <lora:inner:0.5>", lora_dir=tmp_path, **settings)
    [whole] = engine.generate("a cat <lora:copy:0.5>", lora_dir=tmp_path, **settings)
    error = np.mean((np.asarray(weighted, float) - np.asarray(expected, float)) ** 2)
    assert error <= 255**2 / 10**6
    assert not np.array_equal(np.asarray(whole), np.asarray(expected))


def test_wrong_multipliers_are_refused_before_the_first_step(engine: Engine, gains: Path) -> None:
    """Also for what acts on a whole batch, which is looked at image by image first."""
    ia3 = engine.load_adapter(gains)
    for wrong, words in (("much", "finite number"), ([0.1, 0.2], "2 multipliers for 3 rows"), ([], "finite number")):
        with pytest.raises(RequestError, match=words):
            engine.generate("a cat", steps=1, batch=3, adapters=[(ia3, wrong)])
        with pytest.raises(RequestError):
            engine.generate("a cat", steps=1, batch=3, adapters=[[(ia3, wrong)], [], []])
