"""LoHa and LoKr against LyCORIS' functional forms in float64: every way in which their factors are written."""

from typing import Any

import numpy as np
import pytest
import torch
from lycoris.functional import lokr
from lycoris.functional.general import rebuild_tucker

from lora_edge.kinds.loha import LOHA
from lora_edge.kinds.lokr import LOKR

LAYERS = [(12, 18), (18, 12), (12, 10, 3, 3), (12, 10, 1, 1), (8, 2, 3, 3)]
RANKS = [1, 2, 5]


def double(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {leaf: torch.from_numpy(array).double() for leaf, array in tensors.items()}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("flat", [True, False])
def test_loha(layer: Any, rank: int, flat: bool, random: Any, check: Any) -> None:
    columns = (int(np.prod(layer[1:])),) if flat else layer[1:]
    shapes = {"a": (layer[0], rank), "b": (rank, *columns)}
    tensors = {f"hada_w{half}_{side}": random(*shapes[side]) for half in (1, 2) for side in "ab"}
    d = double(tensors)
    first, second = (d[f"hada_w{half}_a"] @ d[f"hada_w{half}_b"].flatten(1) for half in (1, 2))
    weight = random(*layer)
    (form,) = check(
        tensors | {"alpha": np.float32(0.5)}, weight, weight + 0.5 / rank * (first * second).numpy().reshape(layer)
    )
    assert form.rank == min(rank * rank, layer[0], np.prod(layer[1:]))


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if len(layer) == 4])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2), (5, 5), (3, 2), (40, 1)])
def test_loha_with_tucker_cores(layer: Any, p: int, q: int, random: Any, check: Any) -> None:
    tensors = {}
    for half in (1, 2):
        tensors |= {f"hada_t{half}": random(p, q, *layer[2:]), f"hada_w{half}_a": random(p, layer[0])}
        tensors |= {f"hada_w{half}_b": random(q, layer[1])}
    d = double(tensors)
    first, second = (rebuild_tucker(d[f"hada_t{n}"], d[f"hada_w{n}_a"], d[f"hada_w{n}_b"]) for n in (1, 2))
    weight = random(*layer)
    check(tensors, weight, weight + (first * second).numpy())


@pytest.mark.parametrize(
    ("layer", "second"),
    [(layer, way) for layer in LAYERS for way in ("whole", "split", *(("flat", "tucker") if len(layer) == 4 else ()))],
)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("first", ["whole", "split"])
def test_lokr(layer: Any, rank: int, first: str, second: str, random: Any, check: Any) -> None:
    rows, columns = 2, 2
    inner = (layer[0] // rows, layer[1] // columns, *layer[2:])
    flat = (rank, int(np.prod(inner[1:])))
    shapes = {
        "whole": {"lokr_w1": (rows, columns)},
        "split": {"lokr_w1_a": (rows, rank), "lokr_w1_b": (rank, columns)},
    }[first] | {
        "whole": {"lokr_w2": inner},
        "split": {"lokr_w2_a": (inner[0], rank), "lokr_w2_b": (rank, *inner[1:])},
        "flat": {"lokr_w2_a": (inner[0], rank), "lokr_w2_b": flat},
        "tucker": {"lokr_t2": (rank, rank, *inner[2:]), "lokr_w2_a": (rank, inner[0]), "lokr_w2_b": (rank, inner[1])},
    }[second]
    tensors = {leaf: random(*shape) for leaf, shape in shapes.items()}
    d = double(tensors)
    if second == "flat":
        d["lokr_w2_b"] = d["lokr_w2_b"].reshape(rank, *inner[1:])
    if second == "tucker":
        d["lokr_w2"] = rebuild_tucker(d.pop("lokr_t2"), d["lokr_w2_a"], d["lokr_w2_b"]).flatten().reshape(inner)
    leaves = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    scale = 1.0 if first == second == "whole" else 3 / rank
    change = lokr._kron_weight(*map(d.get, leaves), scale=scale).numpy().reshape(layer)
    weight = random(*layer)
    (form,) = check(tensors | {"alpha": np.float32(3)}, weight, weight + change)
    sides = (min(rows, columns), min(inner[0], int(np.prod(inner[1:]))))
    ranks = tuple(rank if way != "whole" else 99 for way in (first, second))
    assert form.rank == min(ranks[0], sides[0]) * min(ranks[1], sides[1])


def test_the_scale_of_a_whole_lokr_is_a_configs_or_none(random: Any, form: Any) -> None:
    """LyCORIS ignores alpha where no factor has a rank, PEFT does not (tuners/lokr/layer.py, get_delta_weight)."""
    tensors = {"lokr_w1": random(2, 2), "lokr_w2": random(3, 4)}
    assert form((6, 8), tensors | {"alpha": np.float32(1e9)})[0].scale == 1.0
    assert form((6, 8), tensors, config_scale=lambda rank: 0.25 if rank is None else 9.0)[0].scale == 0.25
    assert form((6, 8), tensors | {"scale": np.float32(0.5)})[0].scale == 0.5


A, B = (12, 2), (2, 18)
HALF = {"hada_w1_a": A, "hada_w1_b": B}


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((12, 18), HALF, "has hada_w1_a and hada_w1_b but no hada_w2_a"),
        ((12, 18), HALF | {"hada_w2_a": (12, 3), "hada_w2_b": B}, r"has hada_w2_a \[12, 3\] where .* \[12, 2\]"),
        ((12, 18), HALF | {"hada_w2_a": A, "hada_w2_b": (2, 17)}, r"has hada_w2_b \[2, 17\] where .* \[2, 18\]"),
        ((12, 18), HALF | {"hada_w2_a": A, "hada_w2_b": ()}, "which has no rank"),
        ((12, 18), HALF | {"hada_w2_a": A, "hada_w2_b": (0, 18)}, "which has no rank"),
        ((12,), HALF | {"hada_w2_a": A, "hada_w2_b": B}, "is a norm"),
        (
            (12, 18, 3, 3),
            {"hada_w1_a": (2, 12), "hada_w1_b": B, "hada_t1": (2, 2, 3, 1), "hada_w2_a": A, "hada_w2_b": B},
            "has a hada_t1 of shape",
        ),
        (
            (12, 18, 3, 3),
            {"hada_w1_a": (2, 12), "hada_w1_b": B, "hada_t1": (0, 2, 3, 3), "hada_w2_a": A, "hada_w2_b": B},
            "has a hada_t1 of shape",
        ),
        ((12, 18), {"lokr_w1": (2, 2)}, "has lokr_w1 but no lokr_w2_a"),
        ((12, 18), {"lokr_w2": (6, 9)}, "has lokr_w2 but no lokr_w1_a"),
        ((12, 18), {"lokr_w1": (5, 2), "lokr_w2": (6, 9)}, "does not divide the layer's"),
        ((12, 18), {"lokr_w1": (2, 2), "lokr_w2": (6, 8)}, r"has lokr_w2 \[6, 8\] where .* \[6, 9\]"),
        ((12, 18), {"lokr_w1": (2, 2), "lokr_w2": (6,)}, "that is no matrix"),
        ((12, 18), {"lokr_w1": (0, 2), "lokr_w2": (6, 9)}, "that is no matrix"),
        ((12, 18), {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w2": (6, 9)}, "both whole and in factors"),
        ((12, 18), {"lokr_w1": (2, 2), "lokr_w2_a": (6, 2), "lokr_w2_b": (3, 9)}, r"has lokr_w2_a \[6, 2\]"),
        ((12, 18, 3, 3), {"lokr_w1": (2, 2), "lokr_w2": (6, 3, 3, 9)}, r"has lokr_w2 \[6, 3, 3, 9\]"),
        ((12, 18, 3, 3), {"lokr_w1": (2, 2), "lokr_t2": (2, 2, 3, 3)}, "but no lokr_w2_a"),
        (
            (12, 18, 3, 3),
            {"lokr_w1": (2, 2), "lokr_t2": (2, 2, 1, 1), "lokr_w2_a": (2, 6), "lokr_w2_b": (2, 9)},
            "has a lokr_t2 of shape",
        ),
        (
            (12, 18, 3, 3),
            {"lokr_w1": (2, 2), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 6), "lokr_w2_b": (3, 9)},
            r"has lokr_w2_b \[3, 9\]",
        ),
        ((12,), {"lokr_w1": (2, 2), "lokr_w2": (6, 9)}, "is a norm"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)


def test_ranks() -> None:
    assert LOHA.rank({"hada_w1_b": (4, 9)}) == 4
    assert LOKR.rank({"lokr_w1_b": (3, 2), "lokr_w2_b": (5, 9)}) == 5
    assert LOKR.rank({"lokr_w1_b": (3, 2), "lokr_w2": (5, 9)}) == 3
    assert LOKR.rank({"lokr_w1": (3, 2), "lokr_w2": (5, 9)}) is None
