"""torch module -> the table of its slots, with the placement that costs fewest multiplications."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_edge.export.recipes import Recipe
from lora_edge.slots import Placement, Slot, SlotTable

REFERENCE_ROWS = 2  # guidance asks for the prompt and the negative prompt in one batch
RANK = 16  # what most adapters have


@dataclass(frozen=True)
class Costs:
    """What moving numbers costs a backend, in multiplications that take as long; measured.

    Attributes:
        rewriting: to multiply by one number of a weight that was not laid out beforehand, and in whole graphs to write
            it anew too.
        adding: to add one number of an update to what the layer gives, with lanes or without.
        products: kernels of the layers that may be products; that of a Linear is ().
    """

    rewriting: int
    adding: int
    products: tuple[tuple[int, ...], ...] = ((),)


Form: TypeAlias = Literal["whole", "halves"]
"""Whether a graph is one, or two of which the first computes what stays from step to step, see `export.halves`."""

COSTS: Mapping[tuple[str, Form], Costs] = {  # by the backend that a graph is written for
    ("onnxruntime", "whole"): Costs(rewriting=150, adding=0),
    ("onnxruntime", "halves"): Costs(rewriting=20, adding=0),
    ("openvino", "whole"): Costs(rewriting=100, adding=60, products=((), (1, 1))),
    ("openvino", "halves"): Costs(rewriting=40, adding=60, products=((), (1, 1))),
}
CONTRACT: tuple[str, Form] = "onnxruntime", "whole"  # what graphs of the contract are placed by


def slot_table(
    recipe: Recipe,
    module: nn.Module,
    config: Mapping[str, Any],
    example: tuple[Tensor, ...],
    costs: Costs | None = COSTS[CONTRACT],
) -> SlotTable:
    """Find every Linear and Conv2d without groups, and every norm with parameters.

    Args:
        recipe: of the component.
        module: the component.
        config: its config.json.
        example: inputs at the reference size.
        costs: what placements are chosen by; None puts no update into a weight, as quantized ones want it.
    """
    if not recipe.slotted:
        return SlotTable(recipe.component, ())
    seen = positions(recipe, module, example) if costs else {}
    named = [(name, recipe.canonical(name), layer) for name, layer in module.named_modules()]
    slots = tuple(_slot(slot, layer, seen.get(slot, 1), costs) for _, slot, layer in named if _takes_update(layer))
    norms = {
        slot: layer.weight.numel()
        for _, slot, layer in named
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm) and layer.weight is not None
    }
    return SlotTable(recipe.component, slots, norms, recipe.facts(config))


def _takes_update(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _slot(name: str, layer: nn.Module, positions: int, costs: Costs | None) -> Slot:
    out_features, in_features, *kernel = layer.weight.shape  # type: ignore[misc]
    return Slot(
        name,
        int(in_features),
        int(out_features),
        (int(kernel[0]), int(kernel[1])) if kernel else None,
        _placed(positions, int(in_features), int(out_features), tuple(kernel), costs),
        layer.bias is not None,
    )


def _placed(
    positions: int, in_features: int, out_features: int, kernel: tuple[int, ...], costs: Costs | None
) -> Placement:
    if costs is None or kernel not in costs.products:
        return "activation"
    return placement(positions, in_features, out_features, costs)


def placement(positions: int, in_features: int, out_features: int, costs: Costs) -> Placement:
    """Where the update of a Linear is cheaper, by multiplications at rank `RANK`.

    Activation form costs rows * positions * r * (in + out) of them and the adding, weight form in * out * r and the
    rewriting. A Conv takes the activation form, unless it is 1x1 and may be a product: onnxruntime loses its blocked
    layout when the weight is not constant. A layer that sees one position per row (time embeddings) has no axis to
    broadcast a weight per row over.
    """
    beside = REFERENCE_ROWS * positions * (RANK * (in_features + out_features) + costs.adding * out_features)
    inside = in_features * out_features * (RANK + costs.rewriting)
    return "weight" if positions > 1 and inside < beside else "activation"


def positions(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Positions per batch row that each slot sees, found on the meta device: shapes only, nothing computed."""
    seen: dict[str, int] = {}
    wrapped = recipe.wrap(module)

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            axes = x.shape[2:] if isinstance(layer, nn.Conv2d) else x.shape[1:-1]
            seen[name] = axes.numel()

        return hook

    hooks = [
        layer.register_forward_pre_hook(note(recipe.canonical(name)))
        for name, layer in module.named_modules()
        if _takes_update(layer)
    ]
    state = {name: _shape(tensor) for name, tensor in [*wrapped.named_parameters(), *wrapped.named_buffers()]}
    try:
        functional_call(wrapped, state, tuple(tensor.to("meta") for tensor in example))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _shape(tensor: Tensor) -> Tensor:
    """What computing needs on the meta device; a weight may be stored in half precision."""
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
