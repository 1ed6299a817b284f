"""The torch models behind the tiny bundle, in float64, with weights put in place of their own."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel

from .example import Array

Outputs = dict[str, Array]


class Twin:
    """One component as torch runs it.

    Attributes:
        plain: the module as it was loaded, float32.
        inputs: as the graph takes them.
        parameters: `<slot or norm>.weight` and `.bias` -> float64; layers without a bias are given zeros.
    """

    def __init__(self, component: str, module: nn.Module, inputs: Mapping[str, Array]) -> None:
        self.component, self.inputs = component, dict(inputs)
        self.plain = module.eval()
        module = copy.deepcopy(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]))
        self._module = module.double().eval()
        self._prefix = "" if component == "unet" else "text_model."
        self.parameters = {
            self._prefix + name.removeprefix(self._prefix): value.detach().numpy()
            for name, value in self._module.named_parameters()
        }
        self.base = self.run({})

    def run(self, changed: Mapping[str, Array]) -> Outputs:
        """Outputs by the graph's names, float64."""
        own = dict(self._module.named_parameters())
        state = {}
        for name, value in changed.items():
            bare = name.removeprefix(self._prefix)
            state[bare if bare in own else name] = torch.from_numpy(np.ascontiguousarray(value))
        with torch.no_grad():
            return self.outputs(lambda **inputs: functional_call(self._module, state, kwargs=inputs), torch.float64)

    def outputs(self, model: Callable[..., Any], dtype: torch.dtype = torch.float32) -> Outputs:
        """Outputs of a module of this component, by the graph's names."""
        inputs = {name: _tensor(array, dtype) for name, array in self.inputs.items()}
        if self.component == "unet":
            return {"out_sample": model(**inputs).sample.numpy()}
        out = model(**inputs, output_hidden_states=True)
        hidden = {f"hidden_states.{index}": state.numpy() for index, state in enumerate(out.hidden_states)}
        return {
            "last_hidden_state": out.last_hidden_state.numpy(),
            "pooler_output": out.pooler_output.numpy(),
            **hidden,
        }


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def twins(model: Path) -> dict[str, Twin]:
    """UNet and text encoder of a diffusers folder."""
    rng = np.random.default_rng(5)
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    text = CLIPTextModel.from_pretrained(model / "text_encoder")
    width, length = text.config.hidden_size, text.config.max_position_embeddings
    ids = np.full((1, length), text.config.eos_token_id, np.int64)
    ids[0, 0], ids[0, 1:30] = text.config.bos_token_id, rng.integers(0, 500, 29)
    inputs: dict[str, tuple[nn.Module, dict[str, Array]]] = {
        "unet": (
            unet,
            {
                "sample": rng.standard_normal((1, 4, 8, 8), np.float32),
                "timestep": np.array([400]),
                "encoder_hidden_states": rng.standard_normal((1, 11, width), np.float32),
            },
        ),
        "text_encoder": (text, {"input_ids": ids}),
    }
    return {name: Twin(name, module, given) for name, (module, given) in inputs.items()}


def worst(outputs: Mapping[str, Array], wanted: Outputs, base: Outputs) -> float:
    """The largest error of any output, as a part of the largest change that the adapter makes to it."""
    ratios = []
    for name, values in wanted.items():
        change = np.abs(values - base[name]).max()
        error = np.abs(outputs[name] - values).max()
        ratios.append(float(error / change) if change else float(error > 1e-5))
    return max(ratios)
