"""The shape of a recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Port:
    """A graph input or output: its name and its axes.

    The axes listed are free at run time; the others are fixed, as tracing finds them.
    """

    name: str
    free: Mapping[int, str]


@dataclass(frozen=True)
class Recipe:
    """How one component is traced.

    Attributes:
        component: name in the bundle.
        folder: name in the checkpoint folder.
        classes: class names in `model_index.json` that this recipe reads.
        load: class name, folder, precision -> module in eval mode.
        wrap: module -> module whose forward takes and returns the ports in order.
        inputs: graph inputs in order.
        outputs: module -> names of the graph outputs in order.
        example: config, size -> example inputs, where size is the number of latent rows and columns.
        reference: config -> the latent size that placement is counted for.
        varying: the inputs that are others in every run, where all the rest stays from run to run.
        check: config -> a sentence that says why this architecture cannot be exported, or None.
        facts: config -> what dialects need to know (see `SlotTable.facts`).
        slotted: whether the layers take updates.
        canonical: parameter name in the module -> its name in the contract.
    """

    component: str
    folder: str
    classes: tuple[str, ...]
    load: Callable[[str, str, torch.dtype], nn.Module]
    wrap: Callable[[nn.Module], nn.Module]
    inputs: tuple[Port, ...]
    outputs: Callable[[nn.Module], tuple[Port, ...]]
    example: Callable[[Mapping[str, Any], int, int], tuple[Tensor, ...]]
    reference: Callable[[Mapping[str, Any]], int]
    varying: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], str | None] = lambda config: None
    facts: Callable[[Mapping[str, Any]], dict[str, int]] = lambda config: {}
    slotted: bool = True
    canonical: Callable[[str], str] = lambda name: name


def seeded(seed: int) -> torch.Generator:
    """A generator for example inputs, so that an export is the same every time."""
    return torch.Generator().manual_seed(seed)
