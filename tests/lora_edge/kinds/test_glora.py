"""GLoRA against LyCORIS' own formula, in both orders of its names."""

from typing import Any

import numpy as np
import pytest
import torch
from lycoris.modules.glora import _glora_weight

from lora_edge.errors import BaseNeeded
from lora_edge.kinds.glora import GLORA

NEW, OLD = ("a1", "a2", "b1", "b2"), ("a2", "a1", "b2", "b1")


@pytest.mark.parametrize("layer", [(12, 18), (18, 12), (12, 10, 3, 3), (12, 10, 1, 1), (40, 30, 3, 3)])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("names", [NEW, OLD])
def test_against_lycoris(layer: Any, rank: int, names: Any, random: Any, check: Any) -> None:
    ones = (1,) * len(layer[2:])
    shapes = ((layer[1], rank, *ones), (rank, layer[1], *ones), (layer[0], rank, *ones), (rank, *layer[1:]))
    factors = [random(*shape) for shape in shapes]
    weight = random(*layer)
    doubles = [torch.from_numpy(array).double() for array in (weight, *factors)]
    change = _glora_weight(*doubles, None, 3 / rank).numpy()
    tensors = dict(zip(names, factors, strict=True)) | {"alpha": np.float32(3)}
    (form,) = check(tensors, weight, weight + change)
    assert form.rank == min(rank * int(np.prod(layer[2:])) + rank, layer[0], np.prod(layer[1:]))


def test_without_a_base(random: Any, form: Any) -> None:
    tensors = {"a1": random(10, 2), "a2": random(2, 10), "b1": random(6, 2), "b2": random(2, 10)}
    with pytest.raises(BaseNeeded, match="glora, which needs the weights of the base"):
        form((6, 10), tensors)
    assert GLORA.rank({leaf: array.shape for leaf, array in tensors.items()}) == 2


GOOD = {"a1": (10, 2), "a2": (2, 10), "b1": (6, 2), "b2": (2, 10)}


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((6, 10), {"a1": (10, 2), "a2": (2, 10), "b1": (6, 2)}, "but no b2"),
        ((6, 10), GOOD | {"b2": (3, 10)}, "in no order"),
        ((6, 10), GOOD | {"a1": (9, 2)}, "in no order"),
        ((6, 10), GOOD | {"b2": (2, 11)}, r"has b2 \[2, 11\]"),
        ((6, 10), GOOD | {"a1": ()}, "no matrices"),
        ((6, 10), GOOD | {"b1": (6, 0), "b2": (0, 10)}, "no matrices"),
        ((6,), GOOD, "is a norm"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)
