"""LoRA against torch layers that compute what the trainer computed, and what it refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lora_edge.errors import AdapterValueError
from lora_edge.forms import LowRank
from lora_edge.kinds import Update
from lora_edge.kinds.lora import LORA

RANK, IN, OUT = 3, 6, 5
rng = np.random.default_rng(0)


def random(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def dense(form: Any, shape: tuple[int, ...]) -> Any:
    """The change of a LowRank, float64."""
    assert isinstance(form, LowRank)
    assert form.down.dtype == form.up.dtype == np.float32
    assert form.down.flags.c_contiguous and form.up.flags.c_contiguous
    return form.scale * (form.down.astype(np.float64) @ form.up).T.reshape(shape)


def conv(x: torch.Tensor, array: Any, pad: bool = False) -> torch.Tensor:
    kernel = torch.from_numpy(np.asarray(array, np.float64))
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2 if pad else 0)


# Layer's weight shape, shapes of the tensors, and the product that the trainer's own layers compute.
Example = tuple[tuple[int, ...], dict[str, tuple[int, ...]], Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]]
EXAMPLES: list[Example] = [
    (
        (OUT, IN),
        {"down": (RANK, IN), "up": (OUT, RANK)},
        lambda x, t: F.linear(F.linear(x, torch.tensor(t["down"]).double()), torch.tensor(t["up"]).double()),
    ),
    (
        (OUT, IN, 1, 1),
        {"down": (RANK, IN, 1, 1), "up": (OUT, RANK, 1, 1)},
        lambda x, t: conv(conv(x, t["down"]), t["up"]),
    ),
    (
        (OUT, IN, 3, 3),
        {"down": (RANK, IN, 3, 3), "up": (OUT, RANK, 1, 1)},
        lambda x, t: conv(conv(x, t["down"], pad=True), t["up"]),
    ),
    *(
        (
            (OUT, IN, 3, 3),
            {"down": (q, IN, 1, 1), "mid": (p, q, 3, 3), "up": (OUT, p, 1, 1)},
            lambda x, t: conv(conv(conv(x, t["down"]), t["mid"], pad=True), t["up"]),
        )
        for p, q in ((3, 3), (4, 2), (2, 4), (9, 3))
    ),
]


@pytest.mark.parametrize(("shape", "shapes", "layers"), EXAMPLES)
def test_forms_compute_what_the_layers_compute(shape: Any, shapes: Any, layers: Any) -> None:
    tensors = {leaf: random(*axes) for leaf, axes in shapes.items()}
    forms = LORA.form(Update("x", shape, {**tensors, "alpha": np.float32(1.5)}))
    assert isinstance(forms, tuple)
    change = torch.from_numpy(sum(dense(form, shape) for form in forms))
    x = torch.randn((2, IN) if len(shape) == 2 else (2, IN, 7, 7), dtype=torch.float64)
    ours = F.linear(x, change) if len(shape) == 2 else F.conv2d(x, change, padding=shape[-1] // 2)
    bound = 1e-12 if "mid" not in tensors else 5e-5  # mid is folded in float32
    torch.testing.assert_close(ours, layers(x, tensors) * 1.5 / len(tensors["down"]), rtol=0, atol=bound)
    assert sum(form.rank for form in forms if isinstance(form, LowRank)) == LORA.size(shapes, shape).lanes <= OUT


@pytest.mark.parametrize(
    ("shape", "down", "up"),
    [
        ((OUT, IN), (RANK, IN, 1, 1), (OUT, RANK, 1, 1)),
        ((OUT, IN, 1, 1), (RANK, IN), (OUT, RANK)),
        ((OUT, IN, 3, 3), (RANK, IN * 9), (OUT, RANK)),
        ((OUT, 1, 3, 3), (RANK, 1, 3, 3), (OUT, RANK, 1, 1)),
        ((OUT, IN), (1, IN), (OUT, 1)),
        ((OUT, IN), (40, IN), (OUT, 40)),
        ((1, IN), (RANK, IN), (1, RANK)),
    ],
)
def test_shapes_that_mean_the_same(shape: Any, down: Any, up: Any) -> None:
    tensors = {"down": random(*down), "up": random(*up)}
    (form,) = LORA.form(Update("x", shape, tensors))
    wanted = tensors["up"].reshape(up[:2]).astype(np.float64) @ tensors["down"].reshape(down[0], -1)
    np.testing.assert_allclose(dense(form, shape), wanted.reshape(shape), atol=1e-12)


@pytest.mark.parametrize(
    ("more", "config", "scale"),
    [
        ({}, None, 1.0),
        ({"alpha": np.float32(6)}, None, 2.0),
        ({"alpha": np.array([1.5], np.float32)}, None, 0.5),
        ({"alpha": np.array([[3]])}, None, 1.0),
        ({"alpha": np.float32(0)}, None, 0.0),
        ({"alpha": np.float32(-3)}, None, -1.0),
        ({"alpha": np.float32(6), "scale": np.float32(0.25)}, None, 0.25),
        ({}, 16.0, 16 / RANK),
        ({"alpha": np.float32(6)}, 16.0, 2.0),
    ],
)
def test_scale(more: dict[str, Any], config: float | None, scale: float) -> None:
    tensors = {"down": random(RANK, IN), "up": random(OUT, RANK), **{leaf: np.asarray(n) for leaf, n in more.items()}}
    update = Update("x", (OUT, IN), tensors, config_scale=(lambda rank: config / (rank or 1)) if config else None)
    (form,) = LORA.form(update)
    assert isinstance(form, LowRank)
    assert form.scale == scale


def test_a_scale_beyond_float32() -> None:
    tensors = {"down": random(RANK, IN), "up": random(OUT, RANK)}
    with pytest.raises(AdapterValueError, match="has a scale of 1e\\+300"):
        LORA.form(Update("x", (OUT, IN), tensors, config_scale=lambda rank: 1e300))


def test_a_product_beyond_float32(form: Any) -> None:
    shapes = {"down": (2, IN, 1, 1), "mid": (2, 2, 3, 3), "up": (OUT, 2, 1, 1)}
    tensors = {leaf: np.full(shape, 1e20, np.float32) for leaf, shape in shapes.items()}
    with pytest.raises(AdapterValueError, match="makes a product of its factors that is not finite"):
        form((OUT, IN, 3, 3), tensors)


def test_mid_has_the_rank_of_down() -> None:
    """The sides of a Tucker core may differ; alpha is divided by the side of `down`."""
    tensors = {
        "down": random(2, IN, 1, 1),
        "mid": random(4, 2, 3, 3),
        "up": random(OUT, 4, 1, 1),
        "alpha": np.array(1.0),
    }
    (form,) = LORA.form(Update("x", (OUT, IN, 3, 3), tensors))
    assert isinstance(form, LowRank)
    assert (form.scale, form.rank) == (0.5, 4)


@pytest.mark.parametrize(
    ("shape", "shapes", "sentence"),
    [
        ((OUT, IN), {"down": (RANK, IN)}, "has down but no up"),
        ((OUT, IN), {"alpha": (), "up": (OUT, RANK)}, "has alpha and up but no down"),
        ((OUT, IN), {"down": (RANK, IN), "up": (OUT, RANK + 1)}, r"has up \[5, 4\] where .* need \[5, 3\]"),
        ((OUT, IN), {"down": (RANK, IN + 1), "up": (OUT, RANK)}, r"has down \[3, 7\] where .* need \[3, 6\]"),
        ((OUT, IN), {"down": (IN, RANK), "up": (RANK, OUT)}, r"has down \[6, 3\]"),
        ((OUT, IN), {"down": (0, IN), "up": (OUT, 0)}, "which has no rank"),
        ((OUT, IN), {"down": (), "up": (OUT, 1)}, "which has no rank"),
        ((OUT, IN), {"down": (RANK,), "up": (OUT, RANK)}, r"has down \[3\]"),
        ((OUT, IN, 3, 3), {"down": (RANK, IN, 1, 1), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 6, 1, 1\]"),
        ((OUT, IN, 3, 3), {"down": (RANK, 3, 3, IN), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 3, 3, 6\]"),
        ((OUT, IN, 1, 1), {"down": (RANK, IN, 3, 3), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 6, 3, 3\]"),
        ((OUT, IN, 3, 3), {"down": (RANK, IN), "mid": (RANK, 2, 3, 3), "up": (OUT, RANK)}, "has a mid of shape"),
        ((OUT, IN, 3, 3), {"down": (RANK,), "mid": (RANK, RANK, 3, 3), "up": (OUT, RANK)}, "has a mid of shape"),
        ((OUT, IN, 3, 3), {"down": (RANK, IN), "mid": (0, RANK, 3, 3), "up": (OUT, 0)}, "has a mid of shape"),
        ((OUT, IN, 3, 3), {"down": (1, IN), "mid": (99, 1, 3, 3), "up": (OUT, 98)}, r"has up \[5, 98\]"),
        ((OUT, IN), {"down": (1, IN), "mid": (1, 1, 3, 3), "up": (OUT, 1)}, "has a mid of shape"),
        (
            (OUT, IN, 3, 3),
            {"down": (RANK, IN, 3, 3), "mid": (RANK, RANK, 3, 3), "up": (OUT, RANK)},
            r"has down \[3, 6, 3, 3\]",
        ),
        ((OUT,), {"down": (RANK, IN), "up": (OUT, RANK)}, "is a norm"),
    ],
)
def test_refusals(shape: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(shape, shapes, sentence)


def test_an_alpha_of_two_numbers(form: Any) -> None:
    tensors = {"down": random(RANK, IN), "up": random(OUT, RANK), "alpha": random(2)}
    with pytest.raises(Exception, match="where one number belongs"):
        form((OUT, IN), tensors)
