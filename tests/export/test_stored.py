"""Weights as the checkpoint stores them: which precision that is, and what the graph gets of it in float32."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_edge
from lora_edge.export import changed
from lora_edge.export.changed import changed_weight
from lora_edge.export.stored import SMALL, blank, precision, widen_small
from lora_edge.forms import Bias, Form, Gain, LowRank


def stored(folder: Path, **files: Tensor) -> Path:
    for name, tensor in files.items():
        save_file({"a": tensor, "ids": torch.zeros(2, dtype=torch.int64)}, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    shards = {f"diffusion_pytorch_model-0000{index}-of-00002": torch.zeros(3, dtype=dtype) for index in (1, 2)}
    assert precision(stored(tmp_path, **shards)) == dtype


def test_anything_wider_is_float32(tmp_path: Path) -> None:
    assert precision(tmp_path) == torch.float32, "weights that are not in safetensors"
    stored(tmp_path, **{"model.fp16": torch.zeros(3, dtype=torch.float16)})
    assert precision(tmp_path) == torch.float32, "a variant that nobody loads unasked says nothing"
    stored(tmp_path, **{"model-00001-of-00002": torch.zeros(3, dtype=torch.float16)})
    stored(tmp_path, **{"model-00002-of-00002": torch.zeros(3, dtype=torch.bfloat16)})
    assert precision(tmp_path) == torch.float32, "two halves have no common one"


def test_tracing_sees_float32_and_needs_no_memory_for_large_weights() -> None:
    module = nn.Sequential(nn.Linear(SMALL, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1)).half()
    widen_small(module)
    twin = blank(module)
    assert [(name, value.shape, value.dtype) for name, value in twin.named_parameters()] == [
        (name, value.shape, torch.float32) for name, value in module.named_parameters()
    ]
    large = "0.weight"
    for name, value in module.named_parameters():
        held = twin.get_parameter(name)
        assert held.requires_grad is False and value.dtype == (
            torch.float16 if "weight" in name and name[0] in "02" else torch.float32
        )
        assert name == large or torch.equal(held, value.float())


def test_a_half_precision_checkpoint_is_exported_as_float32_of_its_numbers(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text" / "text_encoder"
    shutil.copytree(tiny_model / "text_encoder", folder)
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    made = lora_edge.export(tmp_path / "text", tmp_path / "bundle")
    names = {f"text_model.{name.removeprefix('text_model.')}": value.float().numpy() for name, value in state.items()}
    for slot in made.component("text_encoder").table:
        assert np.array_equal(made.weight("text_encoder", slot.name), names[f"{slot.name}.weight"])


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_changed_weights_follow_the_formula(shape: tuple[int, ...], axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """W * (1 + sum m (gain - 1)) + sum m scale (down up)^T, written out in float64 for all of W at once."""
    random = np.random.default_rng(0)
    weight = random.standard_normal(shape).astype(np.float16)
    patch = int(np.prod(shape[1:]))
    expected, gain, forms = np.zeros(shape), np.ones(1), list[tuple[float, Form]]()
    for m, rank in ((0.7, 2), (-0.4, 3)):
        down, up = (random.standard_normal(size).astype(np.float32) for size in ((patch, rank), (rank, 6)))
        gains = random.uniform(0.5, 1.5, shape[0] if axis == "out" else shape[1]).astype(np.float32)
        forms += [(m, LowRank(down, up, scale=0.5)), (m, Gain(axis, gains)), (m, Bias(np.ones(6, np.float32)))]
        expected += m * 0.5 * (down.astype(np.float64) @ up).T.reshape(shape)
        gain = gain + m * (gains.astype(np.float64) - 1)
    spread = (-1, *[1] * (len(shape) - 1)) if axis == "out" else (1, -1, *[1] * (len(shape) - 2))
    expected += weight.astype(np.float64) * gain.reshape(spread)
    for block in (1, 100, 1 << 17):
        monkeypatch.setattr(changed, "BLOCK", block)
        made = changed_weight(torch.from_numpy(weight), forms, torch.empty(2 * weight.size))
        assert made.dtype == torch.float32 and np.abs(made.numpy() - expected).max() < 3e-7
