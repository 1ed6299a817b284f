"""Merging: the sum of the changes, by the written formulas and torch's truncation of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_edge.adapter import Adapter, Report
from lora_edge.adapterfile import read_adapter
from lora_edge.bundle import Bundle
from lora_edge.embedding import Embedding
from lora_edge.errors import AdapterMismatch, AdapterValueError, RequestError
from lora_edge.forms import Bias, ComponentForms, LowRank
from lora_edge.tools.bake import bake
from lora_edge.tools.checkpoint import Checkpoint
from lora_edge.tools.combine import Multiplied, parse_multiplied
from lora_edge.tools.merge import merge
from lora_edge.tools.svd import Budget

Opened = Callable[..., Multiplied]


@pytest.fixture
def two(base: Checkpoint, zoo: Any, opened: Opened, tmp_path: Path) -> tuple[list[Multiplied], dict[str, Any]]:
    """Two files of every kind at their multipliers, and the sum of what they do, `component.tensor` -> change."""
    adapters, wanted = [], {}
    for seed, (text, unet) in enumerate(((0.25, 0.7), (-1.0, 1.5))):
        tensors, changes = zoo.file_of_all(base, seed)
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        adapters.append(opened(tmp_path / f"{seed}.safetensors", text, unet))
        for component, part in changes.items():
            for name, change in part.items():
                factor = unet if component == "unet" else text
                wanted[f"{component}.{name}"] = wanted.get(f"{component}.{name}", 0.0) + factor * change
    return adapters, wanted


def does(base: Checkpoint, path: Path) -> dict[str, Any]:
    """What a file does at multiplier 1, `component.tensor` -> change; every tensor of it must be used."""
    made = {}
    for component, part in read_adapter(path).fit(base.tables).components.items():
        (table,) = (table for table in base.tables if table.component == component)
        for name, forms in part.slots.items():
            shape = table.by_name[name].weight_shape
            for form in forms:
                if isinstance(form, LowRank):
                    product = form.scale * form.down.astype(np.float64) @ form.up.astype(np.float64)
                    made[f"{component}.{name}.weight"] = product.T.reshape(shape)
                elif isinstance(form, Bias):
                    made[f"{component}.{name}.bias"] = form.delta
        for name, norm in part.norms.items():
            made |= {f"{component}.{name}.weight": norm.weight, f"{component}.{name}.bias": norm.bias}
    return made


def test_the_sum_of_every_kind(base: Checkpoint, two: Any, tmp_path: Path) -> None:
    adapters, wanted = two
    made = merge(adapters, base, tmp_path / "both.safetensors", dtype="fp32")
    found = does(base, made.path)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert abs(found[name] - change).max() <= 1e-5 * abs(change).max(), name
    tensors = load_file(made.path)
    whole = [layer.name for layer in made.layers if layer.rank is None]
    assert len(whole) == sum(name.endswith(".diff") for name in tensors) > 4
    assert f"{len(whole)} layers are written as whole differences" in made.warnings[0]
    lanes = tensors["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"]
    assert lanes.shape == (6, 32)
    assert made.others == 2 + 2 and made.share == 1
    total = sum(np.square(change).sum() for name, change in wanted.items() if np.ndim(change) > 1)
    assert sum(layer.total for layer in made.layers) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("rank", [2, 5])
def test_a_rank_truncates_the_sum(base: Checkpoint, two: Any, tmp_path: Path, rank: int) -> None:
    adapters, wanted = two
    made = merge(adapters, base, tmp_path / "both.safetensors", Budget(rank), dtype="fp32")
    found, told = does(base, made.path), {layer.name: layer for layer in made.layers}
    assert found.keys() == wanted.keys() and not made.warnings and made.ranks == (rank,)
    assert not any(name.endswith(".diff") for name in load_file(made.path))
    for name, change in wanted.items():
        if np.ndim(change) < 2:
            assert abs(found[name] - change).max() <= 1e-5 * abs(change).max()
            continue
        left, values, right = torch.linalg.svd(torch.from_numpy(change.reshape(len(change), -1)), full_matrices=False)
        best = ((left[:, :rank] * values[:rank]) @ right[:rank]).numpy()
        np.testing.assert_allclose(found[name].reshape(best.shape), best, atol=3e-5 * abs(change).max())
        layer, squares = told[name.removesuffix(".weight")], values.numpy() ** 2
        assert layer.kept == pytest.approx(squares[:rank].sum(), rel=1e-4)
        assert layer.total == pytest.approx(squares.sum(), rel=1e-4)


def test_a_merged_file_bakes_as_its_parts(
    base: Checkpoint, styles: Path, changed: Any, opened: Opened, tmp_path: Path
) -> None:
    parts = [
        opened(styles / "ink.safetensors", 0.5, 0.8),
        opened(styles / "fog"),
        opened(styles / "deep" / "glow.safetensors", -1),
    ]
    made = merge(parts, base, tmp_path / "three.safetensors", dtype="fp32")
    together, apart = (bake(base, tmp_path / name, adapters) for name, adapters in (
        ("together", [opened(made.path)]), ("apart", parts),
    ))  # fmt: skip
    for component in ("unet", "text_encoder"):
        one, other = (changed(base.folder, each.path, component) for each in (together, apart))
        assert one.keys() == other.keys()
        assert all(abs(one[name] - other[name]).max() < 1e-6 for name in one)


def test_a_bundle_is_a_base_too(tiny_bundle: Path, base: Checkpoint, zoo: Any, tmp_path: Path) -> None:
    """The weights that DoRA and IA3 need come from either, and the files are equal."""
    save_file(zoo.file_of_all(base, 3)[0], tmp_path / "all.safetensors")
    found = []
    for index, source in enumerate((Bundle.open(tiny_bundle), base)):
        adapter = read_adapter(tmp_path / "all.safetensors").fit(source.tables, base=source)
        made = merge([Multiplied(adapter, 0.5, 2.0)], source, tmp_path / f"out{index}.safetensors", dtype="fp32")
        found.append(load_file(made.path))
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_names_and_metadata(base: Checkpoint, save: Any, lora: Any, opened: Opened, tmp_path: Path) -> None:
    table = base.tables[0]
    said = {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    one = save(lora(table, "lora_unet", "conv_in", rank=2), "one.safetensors", {**said, "ss_sd_model_name": "a"})
    other = save(lora(table, "unet.", "conv_in", rank=3), "other.safetensors", {**said, "ss_sd_model_name": "b"})
    made = merge([opened(one, 0.5), opened(other, 1.0, -2.0)], base, tmp_path / "both.safetensors")
    assert set(load_file(made.path)) == {
        f"lora_unet_conv_in.{leaf}" for leaf in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    with safe_open(made.path, "np") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "5" and metadata["ss_base_model_version"] == "sd_v1"
    assert "ss_sd_model_name" not in metadata and metadata["ss_training_comment"] == "merge of one:0.5, other:1:-2"
    json.dumps(made.to_json())


def test_lanes_beyond_the_layer_are_written_whole(
    base: Checkpoint, save: Any, lora: Any, opened: Opened, tmp_path: Path
) -> None:
    files = [
        save(lora(base.tables[0], "lora_unet", "conv_in", rank=20, seed=seed), f"{seed}.safetensors") for seed in (0, 1)
    ]
    made = merge([opened(path) for path in files], base, tmp_path / "both.safetensors", dtype="fp32")
    assert set(load_file(made.path)) == {"lora_unet_conv_in.diff"}
    ((name, change),) = does(base, made.path).items()
    wanted = sum(does(base, path)[name] for path in files)
    np.testing.assert_allclose(change, wanted, atol=1e-4)


def test_words_come_along(base: Checkpoint, save: Any, lora: Any, opened: Opened, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {"zap": rng.standard_normal((2, 64)).astype(np.float32), "a b": np.ones((1, 64), np.float32)}
    bundled = {f"bundle_emb.{name}.emb_params": array for name, array in names.items()}
    one = opened(save({**lora(base.tables[0], "lora_unet", "conv_in"), **bundled}), 0.5)
    made = merge([one, one], base, tmp_path / "both.safetensors")
    embeddings = read_adapter(made.path).fit(base.tables).embeddings
    assert {word.name for word in embeddings} == set(names)
    assert all(np.array_equal(word.vectors["text_encoder"], names[word.name]) for word in embeddings)
    both = Embedding("zap", {"text_encoder": names["zap"], "text_encoder_2": np.ones((2, 80), np.float32)})
    made = merge(
        [Multiplied(Adapter("w", (), {}, {}, Report(), embeddings=(both,)))], base, tmp_path / "xl.safetensors"
    )
    assert {name: array.shape for name, array in load_file(made.path).items()} == {
        "bundle_emb.zap.clip_l": (2, 64),
        "bundle_emb.zap.clip_g": (2, 80),
    }


def test_refusals(base: Checkpoint, save: Any, lora: Any, opened: Opened, tmp_path: Path) -> None:
    adapter = opened(save(lora(base.tables[0], "lora_unet", "conv_in"))).adapter
    out = tmp_path / "out.safetensors"
    with pytest.raises(RequestError, match="nothing is left to write"):
        merge([Multiplied(adapter, 1.0, 0.0)], base, out)
    with pytest.raises(AdapterValueError, match=r"lora_unet_conv_in\.lora_up\.weight has numbers that do not fit F16"):
        merge([Multiplied(adapter, 1.0, 1e6)], base, out)
    zap = [Embedding("zap", {"text_encoder": np.full((2, 64), number, np.float32)}) for number in (0, 1)]
    with pytest.raises(AdapterValueError, match="numbers that do not fit F32"):
        merge([Multiplied(adapter, 1.0, 3e38)] * 9, base, out, dtype="fp32")
    words = [Multiplied(Adapter(word.name, (), {}, {}, Report(), embeddings=(word,))) for word in zap]
    with pytest.raises(AdapterMismatch, match="bring other vectors for the word 'zap'"):
        merge([Multiplied(adapter), *words], base, out)
    lost = Multiplied(Adapter("lost", (), {"unet": ComponentForms({"gone": ()})}, {}, Report()))
    with pytest.raises(AdapterMismatch, match="lost changes gone of unet, which the base lacks"):
        merge([lost], base, out)
    with pytest.raises(RequestError, match="no dtype 'f'"):
        merge([Multiplied(adapter)], base, out, dtype="f")
    assert not list(tmp_path.glob("*out*"))
    out.write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        merge([Multiplied(adapter)], base, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ink.safetensors", ("ink.safetensors", 1.0, 1.0)),
        ("ink.safetensors:0.8", ("ink.safetensors", 0.8, 0.8)),
        ("a/ink.safetensors:-.5:1.25", ("a/ink.safetensors", -0.5, 1.25)),
        ("C:\\ink.safetensors:2", ("C:\\ink.safetensors", 2.0, 2.0)),
        ("C:\\ink.safetensors", ("C:\\ink.safetensors", 1.0, 1.0)),
        ("ink:loud", ("ink:loud", 1.0, 1.0)),
    ],
)
def test_a_file_with_multipliers(text: str, wanted: tuple[str, float, float]) -> None:
    assert parse_multiplied(text) == wanted
