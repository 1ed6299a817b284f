"""Small real models, their slots, and what an adapter does to a weight."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from lora_edge.adapter import Adapter
from lora_edge.forms import LowRank
from lora_edge.slots import Slot, SlotTable

Save = Callable[..., Path]


def _slots(model: torch.nn.Module, prefix: str = "") -> tuple[Slot, ...]:
    made = []
    for name, module in model.named_modules():
        name = name if name.startswith(prefix) else prefix + name
        if isinstance(module, torch.nn.Linear):
            made.append(Slot(name, module.in_features, module.out_features))
        elif isinstance(module, torch.nn.Conv2d):
            kernel = (module.kernel_size[0], module.kernel_size[1])
            made.append(Slot(name, module.in_channels, module.out_channels, kernel))
    return tuple(made)


def unet_slots(unet: UNet2DConditionModel) -> SlotTable:
    norms = {
        name: module.weight.shape[0]
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
    }
    facts = {
        "layers_per_block": unet.config.layers_per_block,
        "levels": len(unet.config.block_out_channels),
        "cross_attention_dim": unet.config.cross_attention_dim,
    }
    return SlotTable("unet", _slots(unet), norms, facts)


def text_slots(text_encoder: torch.nn.Module, component: str = "text_encoder") -> SlotTable:
    return SlotTable(component, _slots(text_encoder, "text_model."))


def small_unet() -> UNet2DConditionModel:
    """SD1's block names at a hundredth of its width."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def small_text_encoder(width: int = 12, layers: int = 2) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=40,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    )


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return small_unet()


@pytest.fixture
def short_unet() -> UNet2DConditionModel:
    """Two levels with one layer of each sort; the widths of the second let a conv be square or not."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@pytest.fixture
def text_encoder() -> CLIPTextModel:
    torch.manual_seed(1)
    return small_text_encoder()


@pytest.fixture(scope="session")
def unet_table() -> SlotTable:
    with torch.device("meta"):
        return unet_slots(small_unet())


@pytest.fixture(scope="session")
def text_table() -> SlotTable:
    with torch.device("meta"):
        return text_slots(small_text_encoder())


@pytest.fixture(scope="session")
def sd15_table() -> SlotTable:
    """The UNet of Stable Diffusion 1.5, which is what the class builds by default, but for the widths of text."""
    with torch.device("meta"):
        return unet_slots(UNet2DConditionModel(sample_size=64, cross_attention_dim=768))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes tensors with the reference implementation: save(tensors, name=..., metadata=...) -> path."""

    def write(
        tensors: Mapping[str, Any], name: str = "style.safetensors", metadata: dict[str, str] | None = None
    ) -> Path:
        arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path, metadata=metadata)
        return path

    return write


@pytest.fixture
def delta() -> Callable[[Adapter, str, Slot], Any]:
    """What an adapter adds to a slot's weight at multiplier 1, float64, shaped as the weight."""

    def dense(adapter: Adapter, component: str, slot: Slot) -> Any:
        made = np.zeros(slot.weight_shape)
        for form in adapter.components[component].slots.get(slot.name, ()):
            assert isinstance(form, LowRank)
            product = form.down.astype(np.float64) @ form.up.astype(np.float64)
            made += form.scale * product.T.reshape(slot.weight_shape)
        return made

    return dense


@pytest.fixture
def lora() -> Callable[..., dict[str, Any]]:
    """Random tensors of a LoRA: lora(table, prefix, slots..., rank=, alpha=) -> name -> array.

    After a prefix that ends in a dot the slot's own name follows, after any other the flat one.
    """

    def make(
        table: SlotTable, prefix: str, *names: str, rank: int = 2, alpha: float | None = None, seed: int = 0
    ) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {}
        for name in names:
            slot = table.by_name[name]
            key = prefix + name if prefix.endswith(".") else f"{prefix}_{name.replace('.', '_')}"
            kernel = slot.kernel or ()
            made[f"{key}.lora_down.weight"] = rng.standard_normal((rank, slot.in_features, *kernel), np.float32)
            ones = (1,) * len(kernel)
            made[f"{key}.lora_up.weight"] = rng.standard_normal((slot.out_features, rank, *ones), np.float32)
            if alpha is not None:
                made[f"{key}.alpha"] = np.float32(alpha)
        return made

    return make


@pytest.fixture
def table_of() -> Callable[..., SlotTable]:
    """table_of(unet) or table_of(text_encoder, component) -> the slots of a model."""

    def table(model: torch.nn.Module, component: str = "unet") -> SlotTable:
        return unet_slots(model) if component == "unet" else text_slots(model, component)

    return table
