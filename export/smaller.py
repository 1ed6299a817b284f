"""Smaller weights: quantized for memory (`export.quantize`), or stored in half precision for the disk.

The module is changed, so that everything after it (tracing, verification) sees the weights that the graph will have.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from lora_edge.arrays import FloatArray
from lora_edge.blockwise import Blockwise
from lora_edge.errors import ExportError
from lora_edge.export.changed import changed_while_used
from lora_edge.export.passes.pack_weights import pack_weights
from lora_edge.export.passes.store_halves import store_halves
from lora_edge.export.quantize import CHOICES, Way, block_of, quantized
from lora_edge.export.recipes import Recipe
from lora_edge.export.slotted import inputs_seen
from lora_edge.export.stored import LAYERS
from lora_edge.slots import SlotTable

STORES: Mapping[str, tuple[torch.dtype, ir.DataType] | None] = {
    "fp32": None,
    "fp16": (torch.float16, ir.DataType.FLOAT16),
    "bf16": (torch.bfloat16, ir.DataType.BFLOAT16),
}


@dataclass(frozen=True)
class Smaller:
    """What is asked for.

    Attributes:
        quantize: a key of CHOICES: slots keep that many bits a weight, on disk and in memory; None for all of them.
        store: a key of STORES: the precision of other large weights on disk; in memory they are float32.

    Raises:
        ExportError: there is no such thing.
    """

    quantize: str | None = None
    store: str = "fp32"

    def __post_init__(self) -> None:
        for asked, known in ((self.quantize or "int8", CHOICES), (self.store, STORES)):
            if asked not in known:
                raise ExportError(f"weights cannot be made {asked!r}; there are {', '.join(known)}")

    @property
    def asked(self) -> bool:
        return self.quantize is not None or self.store != "fp32"


@dataclass(frozen=True)
class Shrunk:
    """A component whose module computes with smaller weights.

    Attributes:
        smaller: what was asked for.
        ways, weights: slot -> how it lies, and its numbers; layers that are not quantized are not there.
        stored: names of weights that the file has in half precision.
        psnr: of what the module computes now against what it did, in dB, see `psnr`.
    """

    smaller: Smaller
    ways: Mapping[str, Way]
    weights: Mapping[str, Blockwise]
    stored: frozenset[str]
    psnr: float

    def dress(self, model: ir.Model, table: SlotTable) -> None:
        """Put the weights into a finished graph, changed in place."""
        if self.weights:
            pack_weights(model, table, self.ways, self.weights)
        if (store := STORES[self.smaller.store]) is not None:
            store_halves(model, self.stored, store[1])

    def to_json(self, table: SlotTable) -> dict[str, Any]:
        """What the manifest says of it: `psnr` is None where nothing changed."""
        bits = {slot: way.bits for slot, way in self.ways.items()}
        return {
            "quantize": self.smaller.quantize if self.weights else None,
            "store": self.smaller.store,
            "psnr": self.psnr if np.isfinite(self.psnr) else None,
            "bits": {slot.name: bits.get(slot.name, 32) for slot in table} if self.weights else {},
        }


def shrink(
    smaller: Smaller,
    recipe: Recipe,
    module: nn.Module,
    table: SlotTable,
    example: tuple[Tensor, ...],
    seen: tuple[Tensor, ...],
) -> Shrunk:
    """Replace the weights of a module by smaller ones.

    Args:
        smaller: what is asked for; components without slots are not quantized.
        recipe: of the component.
        module: changed in place.
        table: its slots.
        example: inputs that the change is measured with.
        seen: inputs of the reference size.

    Raises:
        ExportError: a weight is too large for half precision.
    """
    before = computed(recipe, module, example)
    layers = {recipe.canonical(name): layer for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    if (store := STORES[smaller.store]) is not None:
        for name, layer in layers.items():
            layer.weight.data = _rounded(name, layer.weight.detach(), store[0])
    ways: dict[str, Way] = {}
    weights: dict[str, Blockwise] = {}
    if smaller.quantize:
        at = inputs_seen(recipe, module, seen)
        ways = {slot.name: CHOICES[smaller.quantize](slot, at[slot.name].positions) for slot in table if block_of(slot)}
        for name, way in ways.items():
            parameter = layers[name].weight
            made = quantized(parameter.detach().float().numpy(), way, block_of(table.by_name[name]))
            parameter.data = torch.from_numpy(made.dequantized())
            weights[name] = made
    after = computed(recipe, module, example)
    told = min(psnr(now, then) for now, then in zip(after, before, strict=True))
    stored = frozenset(f"{name}.weight" for name in layers.keys() - weights.keys())
    return Shrunk(smaller, ways, weights, stored, told)


def _rounded(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    made = weight.to(dtype)
    if not torch.isfinite(made).all():
        raise ExportError(f"the weight of {name} has numbers beyond float16; store it in bf16 or fp32")
    return made


def computed(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> tuple[FloatArray, ...]:
    """What a module computes, whatever precision the weights of its layers are in: an array for each output."""
    wrapped = recipe.wrap(module)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for layer in wrapped.modules():
            if isinstance(layer, LAYERS):
                hooks.enter_context(changed_while_used(layer, layer.weight.detach().float))
        outputs = wrapped(*example)
    return tuple(tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,)))


def psnr(now: FloatArray, then: FloatArray) -> float:
    """Peak signal to noise ratio in dB, the peak being the range of the original's values; infinite where equal."""
    error = float(np.mean((now.astype(np.float64) - then) ** 2))
    return float(10 * np.log10(float(np.ptp(then)) ** 2 / error)) if error else float("inf")
