"""Kinds against torch layers that compute what the trainer computed, and what each refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lora_edge.errors import AdapterMismatch, AmbiguousKind, UnknownKind
from lora_edge.forms import Gain, LowRank
from lora_edge.kinds import KINDS, UNREAD, Kind, Modifier, Update, claim, split
from lora_edge.kinds.lora import LORA

RANK, IN, OUT = 3, 6, 5
rng = np.random.default_rng(0)


def random(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def weight(form: Any, shape: tuple[int, ...]) -> Any:
    """The dense change of a LowRank, float64."""
    assert isinstance(form, LowRank)
    assert form.down.dtype == form.up.dtype == np.float32
    assert form.down.flags.c_contiguous and form.up.flags.c_contiguous
    return form.scale * (form.down.astype(np.float64) @ form.up).T.reshape(shape)


def conv(x: torch.Tensor, array: Any, pad: bool = False) -> torch.Tensor:
    kernel = torch.from_numpy(np.asarray(array, np.float64))
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2 if pad else 0)


# Kind -> layer's weight shape, tensors, and the product that the trainer's own layers compute.
Example = tuple[tuple[int, ...], dict[str, Any], Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]]
EXAMPLES: dict[str, list[Example]] = {
    "lora": [
        (
            (OUT, IN),
            {"down": random(RANK, IN), "up": random(OUT, RANK)},
            lambda x, t: F.linear(F.linear(x, torch.tensor(t["down"]).double()), torch.tensor(t["up"]).double()),
        ),
        (
            (OUT, IN, 1, 1),
            {"down": random(RANK, IN, 1, 1), "up": random(OUT, RANK, 1, 1)},
            lambda x, t: conv(conv(x, t["down"]), t["up"]),
        ),
        (
            (OUT, IN, 3, 3),
            {"down": random(RANK, IN, 3, 3), "up": random(OUT, RANK, 1, 1)},
            lambda x, t: conv(conv(x, t["down"], pad=True), t["up"]),
        ),
        (
            (OUT, IN, 3, 3),
            {"down": random(RANK, IN, 1, 1), "mid": random(RANK, RANK, 3, 3), "up": random(OUT, RANK, 1, 1)},
            lambda x, t: conv(conv(conv(x, t["down"]), t["mid"], pad=True), t["up"]),
        ),
    ]
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, rows in EXAMPLES.items() for at in range(len(rows))])
def test_forms_compute_what_the_layers_compute(name: str, at: int) -> None:
    shape, tensors, layers = EXAMPLES[name][at]
    kind = claim(tensors.keys())
    assert kind.name == name
    forms = kind.form(Update("x", shape, {**tensors, "alpha": np.float32(1.5)}))
    assert isinstance(forms, tuple)
    dense = torch.from_numpy(sum(weight(form, shape) for form in forms))
    x = torch.randn((2, IN) if len(shape) == 2 else (2, IN, 7, 7), dtype=torch.float64)
    ours = F.linear(x, dense) if len(shape) == 2 else F.conv2d(x, dense, padding=shape[-1] // 2)
    bound = 1e-12 if "mid" not in tensors else 2e-5  # mid is folded in float32
    torch.testing.assert_close(ours, layers(x, tensors) * 1.5 / RANK, rtol=0, atol=bound)


def test_every_kind_has_an_example() -> None:
    assert {kind.name for kind in KINDS} == set(EXAMPLES)


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
    np.testing.assert_allclose(weight(form, shape), wanted.reshape(shape), atol=1e-12)


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
    update = Update("x", (OUT, IN), tensors, config_scale=(lambda rank: config / rank) if config else None)
    (form,) = LORA.form(update)
    assert isinstance(form, LowRank)
    assert form.scale == scale


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
    ("shape", "tensors", "sentence"),
    [
        ((OUT, IN), {"down": (RANK, IN)}, "has down but no up"),
        ((OUT, IN), {"alpha": (), "up": (OUT, RANK)}, "has alpha and up but no down"),
        ((OUT, IN), {"down": (RANK, IN), "up": (OUT, RANK + 1)}, r"has up \[5, 4\] where .* need \[5, 3\]"),
        ((OUT, IN), {"down": (RANK, IN + 1), "up": (OUT, RANK)}, r"has down \[3, 7\] where .* need \[3, 6\]"),
        ((OUT, IN), {"down": (IN, RANK), "up": (RANK, OUT)}, r"has down \[6, 3\]"),
        ((OUT, IN), {"down": (0, IN), "up": (OUT, 0)}, "which has no rank"),
        ((OUT, IN), {"down": (), "up": (OUT, 1)}, "which has no rank"),
        ((OUT, IN), {"down": (RANK,), "up": (OUT, RANK)}, r"has down \[3\]"),
        ((OUT, IN), {"down": (RANK, IN), "up": (OUT, RANK), "alpha": (2,)}, "where one number belongs"),
        ((OUT, IN, 3, 3), {"down": (RANK, IN, 1, 1), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 6, 1, 1\]"),
        ((OUT, IN, 3, 3), {"down": (RANK, 3, 3, IN), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 3, 3, 6\]"),
        ((OUT, IN, 1, 1), {"down": (RANK, IN, 3, 3), "up": (OUT, RANK, 1, 1)}, r"has down \[3, 6, 3, 3\]"),
        ((OUT, IN, 3, 3), {"down": (RANK, IN), "mid": (RANK, 2, 3, 3), "up": (OUT, RANK)}, "has a mid of shape"),
        ((OUT, IN, 3, 3), {"down": (RANK,), "mid": (RANK, RANK, 3, 3), "up": (OUT, RANK)}, "has a mid of shape"),
        (
            (OUT, IN, 3, 3),
            {"down": (RANK, IN, 3, 3), "mid": (RANK, RANK, 3, 3), "up": (OUT, RANK)},
            "has a mid of shape",
        ),
        ((OUT, IN, 3, 3), {"down": (1, IN), "mid": (99, 1, 3, 3), "up": (OUT, 99)}, "more lanes than the layer's 54"),
        ((OUT,), {"down": (RANK, IN), "up": (OUT, RANK)}, "is a norm"),
    ],
)
def test_refusals(shape: tuple[int, ...], tensors: dict[str, tuple[int, ...]], sentence: str) -> None:
    update = Update("x", shape, {leaf: random(*axes) if axes else np.array(1.0) for leaf, axes in tensors.items()})
    with pytest.raises(AdapterMismatch, match=sentence):
        LORA.form(update)


@pytest.mark.parametrize(
    "tensor",
    [
        "lora_down.weight",
        "lora_A.weight",
        "lora_A.default.weight",
        "lora_A.my_style.weight",
        "lora.down.weight",
        "lora_linear_layer.down.weight",
        "down.weight",
    ],
)
@pytest.mark.parametrize("module", ["lora_unet_x_y", "unet.a.to_q_lora", "a.0.b", "x"])
def test_every_spelling_of_down(tensor: str, module: str) -> None:
    assert split(f"{module}.{tensor}") == (module, "down")
    up = tensor.replace("down", "up").replace("lora_A", "lora_B")
    assert split(f"{module}.{up}") == (module, "up")


@pytest.mark.parametrize(
    ("tensor", "parts"),
    [
        ("lora_unet_x.alpha", ("lora_unet_x", "alpha")),
        ("lora_unet_x.lora_mid.weight", ("lora_unet_x", "mid")),
        ("lora_unet_x.hada_w1_a", ("lora_unet_x", "hada_w1_a")),
        ("lora_unet_x.what.ever", ("lora_unet_x", "what.ever")),
        ("a.b.what", ("a.b", "what")),
        ("emb_params", ("", "emb_params")),
        ("", ("", "")),
    ],
)
def test_other_leaves(tensor: str, parts: tuple[str, str]) -> None:
    assert split(tensor) == parts


@pytest.mark.parametrize(("kind", "leaf"), [(kind, leaf) for kind, leaves in UNREAD.items() for leaf in leaves])
def test_kinds_that_are_not_read_are_named(kind: str, leaf: str) -> None:
    leaf = split(f"x.{leaf.replace('*', 'default')}")[1]
    with pytest.raises(UnknownKind, match=f"{kind}, which lora-edge does not read"):
        claim({leaf, "alpha"})
    with pytest.raises(UnknownKind, match=kind):
        claim({leaf, "down", "up"})


@pytest.mark.parametrize("leaves", [set(), {"alpha"}, {"weight", "bias"}, {"down", "up", "weight"}])
def test_leaves_of_no_kind(leaves: set[str]) -> None:
    with pytest.raises(UnknownKind, match="which no known kind uses"):
        claim(leaves)


def test_leaves_of_two_kinds() -> None:
    other = Kind("other", {"thing": ("thing",)}, frozenset({"thing"}), lambda update: ())
    with pytest.raises(AmbiguousKind, match="has the leaves of lora and of other"):
        claim({"down", "up", "thing"}, kinds=(LORA, other))
    assert claim({"thing"}, kinds=(LORA, other)) is other


def test_a_modifier_goes_around_a_kind() -> None:
    def double(update: Update, forms: Any) -> Any:
        return (*forms, Gain("out", update.tensors["gain"]))

    modifier = Modifier("gained", {"gain": ("gain",)}, frozenset({"gain"}), double)
    kind = claim({"down", "up", "gain"}, modifiers=(modifier,))
    assert kind.name == "lora+gained"
    tensors = {"down": random(RANK, IN), "up": random(OUT, RANK), "gain": random(OUT)}
    forms = kind.form(Update("x", (OUT, IN), tensors))
    assert isinstance(forms, tuple)
    assert [type(form) for form in forms] == [LowRank, Gain]
