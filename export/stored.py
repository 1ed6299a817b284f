"""Large weights in the precision that the checkpoint stores them in: float32 exists for one layer at a time.

Most checkpoints are float16, and float32 of the same numbers takes twice the memory and says nothing more.
"""

import copy
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_edge.errors import CheckpointError
from lora_edge.tensorfile import TensorFile

LAYERS = (nn.Linear, nn.Conv2d)  # those whose weights are left as they are stored
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # spelled as safetensors does
SMALL = 1 << 14  # elements; a tensor of as many is no matter

_FILE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")  # what diffusers and transformers prefer


def precision(folder: Path) -> torch.dtype:
    """The one type of all floating-point tensors in a component's folder, where it is a half precision.

    Returns:
        float32 where types are mixed, or are wider, or the weights are not in safetensors.

    Raises:
        CheckpointError: a file of weights is damaged.
    """
    files = [TensorFile.open(path, CheckpointError) for path in folder.iterdir() if _FILE.fullmatch(path.name)]
    kinds = {dtype for file in files for name in file.names if not (dtype := file.dtype(name)).startswith(("I", "U"))}
    return HALVES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


def widen_small(module: nn.Module) -> None:
    """Make everything float32 but the weights of LAYERS, in place."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not (isinstance(layer, LAYERS) and name == "weight"):
                parameter.data = parameter.data.float()


def blank(module: nn.Module) -> nn.Module:
    """A float32 twin for tracing, which looks at shapes alone: large weights that are stored in half precision are
    memory that nobody fills, and that the system therefore never hands out. The others are shared with the module."""
    twins = {id(held): nn.Parameter(_blank(held.detach()), requires_grad=False) for held in module.parameters()}
    return copy.deepcopy(module, twins)


def _blank(held: Tensor) -> Tensor:
    if held.dtype == torch.float32:
        return held
    return held.float() if held.numel() <= SMALL else torch.empty(held.shape, dtype=torch.float32)
