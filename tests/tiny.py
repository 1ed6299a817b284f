"""The tiny model's components in torch, with inputs: what graphs are compared with."""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from lora_edge.bundle import Bundle
from lora_edge.slots import Slot, SlotTable


class Twin:
    """One component: its slots, its torch module, and inputs of three rows."""

    def __init__(self, table: SlotTable, module: torch.nn.Module, inputs: dict[str, Tensor]) -> None:
        self.table, self.module, self.inputs = table, module, inputs
        self.prefix = "" if table.component == "unet" else "text_model."
        self.random = np.random.default_rng(7)

    def plain(self, rows: int = 1) -> dict[str, np.ndarray]:
        """The first rows of the inputs."""
        return {name: tensor[:rows].numpy() for name, tensor in self.inputs.items()}

    def parameter(self, name: str) -> Tensor:
        return self.module.get_parameter(name.removeprefix(self.prefix))

    def normal(self, *shape: int, scale: float) -> np.ndarray:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def pair(self, slot: Slot, rank: int, size: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """down and up whose product has `size` times the spread of the weight."""
        spread = float(self.parameter(f"{slot.name}.weight").detach().std())
        up = self.normal(rank, slot.out_features, scale=size * spread * (slot.patch / max(rank, 1)) ** 0.5)
        return self.normal(slot.patch, rank, scale=slot.patch**-0.5), up


def twins(bundle: Bundle, tiny_model: Path) -> dict[str, Twin]:
    """UNet and text encoder."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet").eval()
    text = CLIPTextModel.from_pretrained(tiny_model / "text_encoder").eval()
    inputs = {
        "sample": torch.randn(3, 4, 16, 24),
        "timestep": torch.tensor([1.0, 500.5, 981.0]),
        "encoder_hidden_states": torch.randn(3, 77, 64),
    }
    ids = {"input_ids": torch.randint(0, 514, (3, 77)).contiguous()}
    return {
        name: Twin(bundle.component(name).table, module, given)
        for name, module, given in (("unet", unet, inputs), ("text_encoder", text, ids))
    }
