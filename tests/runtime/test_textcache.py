"""The text encoder runs once for what it was asked before, and again for whatever would change its answer."""

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_edge.adapter import Adapter, Report
from lora_edge.multiplier import Multiplier
from lora_edge.runtime.components import Components
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.textcache import Numbers, TextCache, TextKey

SETTINGS: Mapping[str, Any] = {"steps": 1, "seed": 3, "width": 64, "height": 64}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run of a text encoder."""
    made: list[int] = []
    run = Components.run

    def counted(self: Components, name: str, inputs: Mapping[str, Any], feeds: Mapping[str, Any]) -> Any:
        if name == "text_encoder":
            made.append(len(inputs["input_ids"]))
        return run(self, name, inputs, feeds)

    monkeypatch.setattr(Components, "run", counted)
    return made


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_the_same_prompt_is_read_once(tiny_bundle: Path, styles: Path, runs: list[int]) -> None:
    engine = Engine.open(tiny_bundle, lora_dir=styles, threads=1)
    prompt = "a (red:1.3) cat, " + 40 * "word " + "<lora:ink:0.7>"
    first = engine.generate(prompt, batch=2, **SETTINGS)
    assert runs == [4], "three chunks and the empty one of the negative prompt, in one call"
    before = engine.info["texts"]
    second = engine.generate(prompt, batch=2, **SETTINGS)
    after = engine.info["texts"]
    assert runs == [4] and after["misses"] == before["misses"] == 4 and after["hits"] == before["hits"] + 4
    np.testing.assert_array_equal(pixels(first), pixels(second))
    fresh = Engine.open(tiny_bundle, lora_dir=styles, threads=1).generate(prompt, batch=2, **SETTINGS)
    np.testing.assert_array_equal(pixels(fresh), pixels(second))


def test_emphasis_and_what_only_the_unet_sees_are_no_reason_to_read_again(
    tiny_bundle: Path, styles: Path, runs: list[int]
) -> None:
    engine = Engine.open(tiny_bundle, lora_dir=styles, threads=1)
    plain = engine.generate("a cat <lora:ink:0.7>", **SETTINGS)
    engine.generate("a cat", adapters=[(engine.load_adapter(styles / "deep" / "glow.safetensors"), 1.0)], **SETTINGS)
    del runs[:]
    weighed = engine.generate("(a cat:1.5) <lora:ink:0.7:0.2>", **SETTINGS)
    engine.generate("a cat <lora:ink:0:1>", **SETTINGS)
    assert runs == [] and (pixels(plain) != pixels(weighed)).any()


def test_whatever_changes_the_answer_is_read_again(
    tiny_bundle: Path, styles: Path, tmp_path: Path, runs: list[int]
) -> None:
    """Each request after the first differs from one before it in one thing; a fresh engine gives the same image."""
    adapters = tmp_path / "adapters"
    shutil.copytree(styles, adapters)
    shutil.copy(styles / "ink.safetensors", adapters / "twin.safetensors")
    words = tmp_path / "words"
    words.mkdir()
    random = np.random.default_rng(0)
    for name in ("good", "fine"):
        save_file({"emb_params": random.standard_normal((2, 64), np.float32)}, words / f"{name}.safetensors")
    engine = Engine.open(tiny_bundle, lora_dir=adapters, embeddings_dir=words, threads=1)
    engine.generate("a cat", **SETTINGS)
    requests: list[tuple[str, dict[str, Any]]] = [
        ("a cat <lora:ink:0.7>", {}),
        ("a cat <lora:ink:0.8>", {}),
        ("a cat <lora:twin:0.8>", {}),
        ("a cat <lora:ink:0.8:lbw=0.5,1,1,1,1,1,1,1,1,1,1,1>", {}),
        ("a cat <lora:ink:0.4><lora:twin:0.4>", {}),
        ("a cat", {"clip_skip": 2}),
        ("a good cat", {}),
        ("a fine cat", {}),
    ]
    for prompt, others in requests:
        del runs[:]
        made = engine.generate(prompt, **SETTINGS, **others)
        assert runs, prompt
        fresh = Engine.open(tiny_bundle, lora_dir=adapters, embeddings_dir=words, threads=1)
        np.testing.assert_array_equal(pixels(made), pixels(fresh.generate(prompt, **SETTINGS, **others)), prompt)
    save_file({"emb_params": random.standard_normal((2, 64), np.float32)}, words / "good.safetensors")
    del runs[:]
    changed = engine.generate("a good cat", **SETTINGS)
    fresh = Engine.open(tiny_bundle, lora_dir=adapters, embeddings_dir=words, threads=1)
    np.testing.assert_array_equal(pixels(changed), pixels(fresh.generate("a good cat", **SETTINGS)))
    assert runs[0] == 1, "the file has changed under the same name"


def test_images_of_a_batch_have_answers_of_their_own(tiny_bundle: Path, styles: Path, runs: list[int]) -> None:
    engine = Engine.open(tiny_bundle, lora_dir=styles, threads=1)
    ink = engine.load_adapter(styles / "ink.safetensors")
    for multipliers in ([0.0, 0.5, 1.0], [Multiplier(1.0, 0.5), 0.0, Multiplier(0.3, 1.0)]):
        together = engine.generate("a cat", batch=3, adapters=[(ink, multipliers)], **SETTINGS)
        fresh = Engine.open(tiny_bundle, lora_dir=styles, threads=1)
        again = [(fresh.load_adapter(styles / "ink.safetensors"), multipliers)]
        np.testing.assert_array_equal(
            pixels(together), pixels(fresh.generate("a cat", batch=3, adapters=again, **SETTINGS))
        )
    assert engine.info["texts"]["misses"] == 6, "with two prompts, without, at a half and at one; nothing twice"


def test_what_is_kept_is_bounded_and_the_last_used_stays() -> None:
    cache = TextCache(capacity=3 * 4 * 8)
    keys = [TextKey((number,), (), 1) for number in range(5)]
    made: list[int] = []

    def make(places: Any) -> list[np.ndarray]:
        made.extend(places)
        return [np.full((2, 4), place, np.float32) for place in places]

    assert [state[0, 0] for state in cache.states([*keys, keys[0]], make)] == [0, 1, 2, 3, 4, 0], "more than it holds"
    assert cache.info == {"hits": 0, "misses": 5, "kept": 3, "bytes": 96} and made == [0, 1, 2, 3, 4]
    [state] = cache.states([keys[4]], make)
    assert state[0, 0] == 4 and cache.hits == 1 and len(made) == 5
    with pytest.raises(ValueError, match="read-only"):
        state[:] = 0


def test_a_number_is_never_given_again() -> None:
    numbers = Numbers()
    given = set()
    for _ in range(50):  # one after another at the same address
        adapter = Adapter("ink", (), {}, {}, Report())
        given.add(number := numbers.of(adapter))
        assert numbers.of(adapter) == number
        del adapter
        gc.collect()
    assert len(given) == 50 and not numbers._known
