"""Resizing: torch's truncation of the dense product, under the file's own names, dtypes and scales."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_edge.adapterfile import read_adapter
from lora_edge.errors import AdapterError, RequestError
from lora_edge.tools.resize import resize
from lora_edge.tools.svd import Budget

rng = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


LINEAR = {
    "lora_unet_a.lora_down.weight": normal(6, 20),
    "lora_unet_a.lora_up.weight": normal(24, 6),
    "lora_unet_a.alpha": np.array(3, np.float32),
}
CONV = {
    "lora_unet_c.lora_down.weight": normal(6, 8, 3, 3),
    "lora_unet_c.lora_up.weight": normal(10, 6, 1, 1),
    "lora_unet_c.alpha": np.array([12], np.float32),
}
TUCKER = {
    "lora_unet_t.lora_down.weight": normal(5, 8, 1, 1),
    "lora_unet_t.lora_mid.weight": normal(5, 5, 3, 3),
    "lora_unet_t.lora_up.weight": normal(10, 5, 1, 1),
    "lora_unet_t.alpha": np.array(5, np.float16),
}
DIFFUSERS = {
    "unet.down_blocks.0.to_q.lora.down.weight": normal(6, 20),
    "unet.down_blocks.0.to_q.lora.up.weight": normal(24, 6),
    "text_encoder.x.lora_A.weight": normal(4, 20),
    "text_encoder.x.lora_B.weight": normal(24, 4),
}


def products(path: Path) -> dict[str, Any]:
    """Module -> alpha / rank * up @ down as [out, patch], float64, by the formula and without lora_edge."""
    tensors = {name: array.astype(np.float64) for name, array in load_file(path).items()}
    made = {}
    for name, up in tensors.items():
        for above, below in (("lora_up", "lora_down"), ("lora.up", "lora.down"), ("lora_B", "lora_A")):
            if f".{above}.weight" in name:
                module = name.split(f".{above}.weight")[0]
                down = tensors[name.replace(above, below)]
                scale = float(tensors.get(f"{module}.alpha", np.array(len(down))).item()) / len(down)
                mid = tensors.get(f"{module}.lora_mid.weight")
                if mid is not None:
                    down = np.einsum("pqhw,qi->pihw", mid, down[:, :, 0, 0])
                made[module] = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return made


def truncated(change: Any, rank: int) -> tuple[Any, Any]:
    left, values, right = torch.linalg.svd(torch.from_numpy(change), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).numpy(), values.numpy() ** 2


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def save(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
        save_file(tensors, tmp_path / "style.safetensors", metadata=metadata)
        return tmp_path / "style.safetensors"

    return save


@pytest.mark.parametrize("rank", [1, 2, 4, 100])
@pytest.mark.parametrize("tensors", [LINEAR, CONV, TUCKER, DIFFUSERS, {**LINEAR, **CONV, **TUCKER}])
def test_it_is_torchs_truncation(
    write: Callable[..., Path], tmp_path: Path, tensors: dict[str, Any], rank: int
) -> None:
    path = write(tensors)
    made = resize(read_adapter(path), tmp_path / "small.safetensors", Budget(rank))
    before, after, told = products(path), products(made.path), {layer.name: layer for layer in made.layers}
    assert before.keys() == after.keys() == told.keys()
    for module, change in before.items():
        wanted, squares = truncated(change, rank)
        np.testing.assert_allclose(after[module], wanted, atol=2e-6 * abs(change).max())
        assert told[module].kept == pytest.approx(squares[:rank].sum(), rel=1e-5)
        assert told[module].total == pytest.approx(squares.sum(), rel=1e-5)
    names = set(load_file(made.path))
    assert names == {name for name in tensors if "lora_mid" not in name}


def test_scales_dtypes_and_shapes_stay(write: Callable[..., Path], tmp_path: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in {**LINEAR, **CONV}.items()}
    made = resize(read_adapter(write(half)), tmp_path / "small.safetensors", Budget(4, conv_rank=2))
    tensors = load_file(made.path)
    assert tensors["lora_unet_a.alpha"] == 0.5 * 4 and tensors["lora_unet_c.alpha"] == 2 * 2
    assert tensors["lora_unet_a.lora_down.weight"].shape == (4, 20)
    assert tensors["lora_unet_c.lora_down.weight"].shape == (2, 8, 3, 3)
    assert tensors["lora_unet_c.lora_up.weight"].shape == (10, 2, 1, 1)
    assert {array.dtype for name, array in tensors.items() if "lora_" in name and "alpha" not in name} == {
        np.dtype("f2")
    }


def test_another_dtype(write: Callable[..., Path], tmp_path: Path) -> None:
    made = resize(read_adapter(write({**LINEAR, **CONV})), tmp_path / "small.safetensors", Budget(2), dtype="fp16")
    assert {array.dtype for name, array in load_file(made.path).items() if name.endswith(".weight")} == {np.dtype("f2")}
    with pytest.raises(RequestError, match="no dtype 'int4'"):
        resize(read_adapter(made.path), tmp_path / "x.safetensors", Budget(2), dtype="int4")


def test_bfloat16_stays(tmp_path: Path) -> None:
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    save({name: torch.from_numpy(array).bfloat16() for name, array in LINEAR.items()}, tmp_path / "b.safetensors")
    made = resize(read_adapter(tmp_path / "b.safetensors"), tmp_path / "small.safetensors", Budget(6))
    one, other = (load(path) for path in (tmp_path / "b.safetensors", made.path))
    assert other["lora_unet_a.lora_up.weight"].dtype == torch.bfloat16
    product = [
        (part["lora_unet_a.lora_up.weight"].double() @ part["lora_unet_a.lora_down.weight"].double())
        for part in (one, other)
    ]
    assert (product[0] - product[1]).abs().max() < 0.02 * product[0].abs().max()


def test_energy_gives_each_module_the_fewest_lanes(write: Callable[..., Path], tmp_path: Path) -> None:
    uneven = {
        **LINEAR,
        "lora_unet_a.lora_down.weight": LINEAR["lora_unet_a.lora_down.weight"] * 10.0 ** -np.arange(6)[:, None],
    }
    path = write({**{name: array.astype(np.float32) for name, array in uneven.items()}, **CONV})
    made = resize(read_adapter(path), tmp_path / "small.safetensors", Budget(energy=0.9))
    ranks = {layer.name: layer.rank for layer in made.layers}
    for module, change in products(path).items():
        squares = truncated(change, 1)[1]
        assert ranks[module] == np.searchsorted(np.cumsum(squares) / squares.sum(), 0.9) + 1
    assert ranks["lora_unet_a"] < ranks["lora_unet_c"]  # type: ignore[operator]
    assert {read_adapter(made.path).metadata[key] for key in ("ss_network_dim", "ss_network_alpha")} == {"Dynamic"}


def test_a_peft_folder(tmp_path: Path) -> None:
    """Its config would not fit the new ranks: the scale goes into the factors."""
    folder = tmp_path / "fog"
    tensors = {}
    for name, rank in (("a.to_q", 8), ("a.to_k", 2)):
        tensors[f"base_model.model.{name}.lora_A.weight"] = normal(rank, 20)
        tensors[f"base_model.model.{name}.lora_B.weight"] = normal(24, rank)
    config = LoraConfig(r=8, lora_alpha=4, use_rslora=True, rank_pattern={"to_k": 2}, target_modules=["to_q"])
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    made = resize(read_adapter(folder), tmp_path / "small.safetensors", Budget(3))
    after = products(made.path)
    for module, rank in (("a.to_q", 8), ("a.to_k", 2)):
        name = f"base_model.model.{module}"
        change = tensors[f"{name}.lora_B.weight"].astype(np.float64) @ tensors[f"{name}.lora_A.weight"]
        np.testing.assert_allclose(after[name], 4 / np.sqrt(rank) * truncated(change, 3)[0], atol=1e-4)
    assert read_adapter(made.path).configs == {}


def test_header_settings_go_into_the_factors(write: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"unet.r": 6, "unet.lora_alpha": 12, "text_encoder.r": 4, "text_encoder.lora_alpha": 1}
    path = write(DIFFUSERS, {"lora_adapter_metadata": json.dumps(settings), "sshs_model_hash": "0", "mine": "kept"})
    made = resize(read_adapter(path), tmp_path / "small.safetensors", Budget(2))
    before, after = products(path), products(made.path)
    for module, scale in (("unet.down_blocks.0.to_q", 2), ("text_encoder.x", 0.25)):
        np.testing.assert_allclose(after[module], scale * truncated(before[module], 2)[0], atol=1e-4)
    with safe_open(made.path, "np") as file:
        metadata = file.metadata()
    assert metadata["mine"] == "kept" and not {"lora_adapter_metadata", "sshs_model_hash"} & metadata.keys()
    assert metadata["ss_network_dim"] == "2"


def test_what_has_no_lanes_is_copied(write: Callable[..., Path], tmp_path: Path) -> None:
    others = {
        "lora_unet_a.diff_b": normal(24),
        "lora_unet_n.w_norm": normal(7),
        "lora_unet_n.b_norm": normal(7),
        "lora_unet_b.diff_b": normal(9),
        "bundle_emb.zap.emb_params": normal(2, 64),
    }
    made = resize(read_adapter(write({**LINEAR, **others})), tmp_path / "small.safetensors", Budget(2))
    tensors = load_file(made.path)
    assert all(np.array_equal(tensors[name], array) for name, array in others.items())
    assert len(tensors) == len(LINEAR) + len(others)


LOHA = {f"lora_unet_h.hada_{leaf}": normal(*shape) for leaf, shape in (
    ("w1_a", (24, 2)), ("w1_b", (2, 20)), ("w2_a", (24, 2)), ("w2_b", (2, 20)),
)}  # fmt: skip
REFUSALS = {
    "1 of 2 modules are no plain LoRA.*'lora_unet_h', loha.*--bundle or --base": {**LINEAR, **LOHA},
    r"1 of 1 modules are no plain LoRA.*'lora_unet_a', lora\+dora": {**LINEAR, "lora_unet_a.dora_scale": normal(24, 1)},
    r"'lora_unet_a' has no pair of down \[2, 3\] and up \[\]": {"lora_unet_a.lora_down.weight": normal(2, 3)},
    "where the layer and its rank need": {**LINEAR, "lora_unet_a.lora_up.weight": normal(24, 5)},
    "not finite": {**LINEAR, "lora_unet_a.lora_up.weight": np.full((24, 6), np.nan, np.float32)},
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_refusals(write: Callable[..., Path], tmp_path: Path, sentence: str) -> None:
    with pytest.raises(AdapterError, match=sentence):
        resize(read_adapter(write(REFUSALS[sentence])), tmp_path / "small.safetensors", Budget(2))
    assert not (tmp_path / "small.safetensors").exists()
