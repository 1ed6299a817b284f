"""What a request names: proposals for few-step adapters, folders of embeddings, names that are not there."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_edge.errors import AdapterTooLarge, RequestError
from lora_edge.runtime.engine import Engine


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_few_step_adapter_proposes_its_settings_and_changes_nothing(
    tiny_bundle: Path, styles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(styles / "ink.safetensors", tmp_path / "lcm-lora.safetensors")
    engine = Engine.open(tiny_bundle, lora_dir=tmp_path, threads=1)
    with caplog.at_level(logging.WARNING, "lora_edge"):
        [image] = engine.generate("x <lora:lcm-lora>", steps=2, seed=1)
        engine.generate("x <lora:lcm-lora>", steps=2, seed=1)
    assert messages(caplog) == ["lcm-lora is an LCM adapter: use --sampler lcm --steps 4 --guidance 1"], "said once"
    assert "Sampler: Euler, CFG scale: 4" in image.info["parameters"]
    caplog.clear()
    again = Engine.open(tiny_bundle, lora_dir=tmp_path, threads=1)
    again.generate("x <lora:lcm-lora>", steps=2, seed=1, sampler="lcm", guidance=1.0)
    assert not messages(caplog), "who follows it is not told"


def test_an_embedding_that_cannot_be_read_is_named_once(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"emb_params": np.ones((1, 64), np.float32)}, tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    engine = Engine.open(tiny_bundle, embeddings_dir=tmp_path, threads=1)
    for _ in range(2):
        engine.generate("a good cat", steps=1, seed=1)
    (said,) = messages(caplog)
    assert said.startswith("an embedding is left out: ") and "bad.safetensors" in said


def test_an_embedding_of_another_width_is_refused_where_it_is_used(tiny_bundle: Path, tmp_path: Path) -> None:
    save_file({"emb_params": np.ones((1, 768), np.float32)}, tmp_path / "other.safetensors")
    engine = Engine.open(tiny_bundle, embeddings_dir=tmp_path, threads=1)
    engine.generate("a cat", steps=1)
    with pytest.raises(RequestError, match="'other' has width text_encoder 768; text_encoder has width 64"):
        engine.generate("an other cat", steps=1)


def test_tags_need_a_folder(tiny_bundle: Path) -> None:
    with pytest.raises(RequestError, match="names the adapter 'ink', but no lora_dir says"):
        Engine.open(tiny_bundle, threads=1).generate("x <lora:ink>", steps=1)


def test_an_adapter_that_takes_too_much_memory_is_refused_before_it_is_read(tiny_bundle: Path, styles: Path) -> None:
    engine = Engine.open(tiny_bundle, lora_dir=styles, threads=1, largest_adapter=1000)
    with pytest.raises(AdapterTooLarge, match=r"would take .* in memory, and 0\.0 MB are allowed"):
        engine.generate("x <lora:ink>", steps=1)
