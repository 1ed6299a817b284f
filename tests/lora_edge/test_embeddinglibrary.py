"""A folder of embeddings that changes while it is in use."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge import embeddinglibrary
from lora_edge.embeddinglibrary import EmbeddingLibrary
from lora_edge.errors import AdapterNotFound


@pytest.fixture
def put(save: Any) -> Any:
    """put(name, value=1, key="emb_params") writes an embedding of two vectors into the folder."""

    def write(name: str, value: float = 1, key: str = "emb_params") -> Path:
        path: Path = save({key: np.full((2, 8), value, np.float32)}, f"embeddings/{name}")
        return path

    return write


@pytest.fixture
def library(tmp_path: Path) -> EmbeddingLibrary:
    (tmp_path / "embeddings").mkdir()
    return EmbeddingLibrary(tmp_path / "embeddings")


def values(library: EmbeddingLibrary) -> dict[str, float]:
    return {word: float(each.vectors["text_encoder"][0, 0]) for word, each in library.all().items()}


def test_files_in_subfolders(library: EmbeddingLibrary, put: Any) -> None:
    put("bad hands.safetensors", 1)
    put("negative/neg v1.2.safetensors", 2)
    put("cat/learned_embeds.safetensors", 3, key="<cat>")
    put("dog/learned_embeds.safetensors", 4, key="<dog>")
    put("cat/cat.preview.png")
    assert values(library) == {"bad hands": 1, "neg v1.2": 2, "<cat>": 3, "<dog>": 4}
    assert library.unreadable == ()


def test_changes_are_noticed(library: EmbeddingLibrary, put: Any) -> None:
    assert values(library) == {}
    path = put("ink.safetensors", 1)
    assert values(library) == {"ink": 1}
    put("ink.safetensors", 2)
    os.utime(path, ns=(1, 1))
    assert values(library) == {"ink": 2}
    path.rename(path.with_name("oil.safetensors"))
    assert values(library) == {"oil": 2}
    path.with_name("oil.safetensors").unlink()
    assert values(library) == {}


def test_a_file_is_read_once(library: EmbeddingLibrary, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = embeddinglibrary.read_embeddings
    monkeypatch.setattr(embeddinglibrary, "read_embeddings", lambda path: read.append(path.name) or whole(path))
    put("ink.safetensors")
    (library.folder / "bad.safetensors").write_bytes(b"<html>")
    for _ in range(3):
        assert values(library) == {"ink": 1}
    assert sorted(read) == ["bad.safetensors", "ink.safetensors"]


def test_what_cannot_be_read_spoils_nothing_else(library: EmbeddingLibrary, put: Any, save: Any) -> None:
    put("ink.safetensors")
    (library.folder / "page.safetensors").write_bytes(b"<html>")
    save({"a.lora_up.weight": np.ones((2, 2), np.float32)}, "embeddings/lora.safetensors")
    torch.save({"string_to_param": {"*": torch.ones(2, 8)}}, library.folder / "old.pt")
    torch.save({"string_to_param": {"*": torch.ones(2, 8)}}, library.folder / "ink.pt")  # converted already
    assert values(library) == {"ink": 1}
    told = {path.name: str(error) for path, error in library.unreadable}
    assert told.keys() == {"page.safetensors", "lora.safetensors", "old.pt"}
    assert "is a web page" in told["page.safetensors"]
    assert "is no textual inversion" in told["lora.safetensors"]
    assert "run" in told["old.pt"] or "lora-edge convert" in told["old.pt"]


def test_a_word_of_two_files_is_the_first_ones(library: EmbeddingLibrary, put: Any) -> None:
    put("a/ink.safetensors", 1)
    put("b/ink.safetensors", 2)
    put("x.safetensors", 3, key="<ink>")
    put("y.safetensors", 4, key="<ink>")
    assert values(library) == {"ink": 1, "<ink>": 3, "x": 3, "y": 4}
    told = {path.parent.name + "/" + path.name: str(error) for path, error in library.unreadable}
    assert told.keys() == {"b/ink.safetensors", "embeddings/y.safetensors"}
    assert "b/ink.safetensors teaches 'ink', as " in told["b/ink.safetensors"]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="nowhere does not exist"):
        EmbeddingLibrary(tmp_path / "nowhere").all()
