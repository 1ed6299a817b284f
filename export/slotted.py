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
        holds: whether what does not vary is computed once and held.
    """

    rewriting: int
    adding: int
    products: tuple[tuple[int, ...], ...] = ((),)
    holds: bool = False


@dataclass(frozen=True)
class Seen:
    """What a layer is given at the reference size.

    Attributes:
        positions: per row of the batch.
        stays: whether it is an input of the component that stays from run to run, such as the prompt's states.
    """

    positions: int
    stays: bool = False


Form: TypeAlias = Literal["whole", "parts"]
"""Whether a graph is one, or in parts of which the last alone is computed in every step, see `export.parts`."""

COSTS: Mapping[tuple[str, Form], Costs] = {  # by the backend that a graph is written for
    ("onnxruntime", "whole"): Costs(rewriting=150, adding=0),
    ("onnxruntime", "parts"): Costs(rewriting=20, adding=0, holds=True),
    ("openvino", "whole"): Costs(rewriting=100, adding=60, products=((), (1, 1))),
    ("openvino", "parts"): Costs(rewriting=40, adding=60, products=((), (1, 1)), holds=True),
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
    seen = inputs_seen(recipe, module, example) if costs else {}
    named = [(name, recipe.canonical(name), layer) for name, layer in module.named_modules()]
    taking = ((slot, layer) for _, slot, layer in named if _takes_update(layer))
    slots = tuple(_slot(slot, layer, seen.get(slot, Seen(1)), costs) for slot, layer in taking)
    norms = {
        slot: layer.weight.numel()
        for _, slot, layer in named
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm) and layer.weight is not None
    }
    return SlotTable(recipe.component, slots, norms, recipe.facts(config))


def _takes_update(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _slot(name: str, layer: nn.Module, seen: Seen, costs: Costs | None) -> Slot:
    out_features, in_features, *kernel = layer.weight.shape  # type: ignore[misc]
    return Slot(
        name,
        int(in_features),
        int(out_features),
        (int(kernel[0]), int(kernel[1])) if kernel else None,
        _placed(seen, int(in_features), int(out_features), tuple(kernel), costs),
        layer.bias is not None,
    )


def _placed(seen: Seen, in_features: int, out_features: int, kernel: tuple[int, ...], costs: Costs | None) -> Placement:
    if costs is None or kernel not in costs.products:
        return "activation"
    if costs.holds and seen.stays:  # the product without update is held, and no change of adapters asks for it anew
        return "activation"
    return placement(seen.positions, in_features, out_features, costs)


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


def inputs_seen(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Seen]:
    """What each slot sees, found on the meta device: shapes only, nothing computed."""
    seen: dict[str, Seen] = {}
    wrapped = recipe.wrap(module)
    given = {port.name: tensor.to("meta") for port, tensor in zip(recipe.inputs, example, strict=True)}
    stay = [tensor for name, tensor in given.items() if name not in recipe.varying]

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            axes = x.shape[2:] if isinstance(layer, nn.Conv2d) else x.shape[1:-1]
            seen[name] = Seen(axes.numel(), any(x is tensor for tensor in stay))

        return hook

    hooks = [
        layer.register_forward_pre_hook(note(recipe.canonical(name)))
        for name, layer in module.named_modules()
        if _takes_update(layer)
    ]
    state = {name: _shape(tensor) for name, tensor in [*wrapped.named_parameters(), *wrapped.named_buffers()]}
    try:
        functional_call(wrapped, state, tuple(given.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _shape(tensor: Tensor) -> Tensor:
    """What computing needs on the meta device; a weight may be stored in half precision."""
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
