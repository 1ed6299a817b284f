"""Which kind claims which leaves, and how files spell them."""

from typing import Any

import numpy as np
import pytest

from lora_edge.errors import AmbiguousKind, UnknownKind
from lora_edge.forms import Gain, LowRank
from lora_edge.kinds import KINDS, MODIFIERS, UNREAD, Kind, Modifier, Update, claim, is_adapter_leaf, split
from lora_edge.kinds.lora import LORA

LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
GLORA = {"a1", "a2", "b1", "b2"}


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
        ("base_model.model.x.hada_w1_a", ("base_model.model.x", "hada_w1_a")),
        ("base_model.model.x.hada_w1_a.default", ("base_model.model.x", "hada_w1_a")),
        ("base_model.model.x.hada_w1_a.weight", ("base_model.model.x", "hada_w1_a")),
        ("x.lokr_w2.default.weight", ("x", "lokr_w2")),
        ("x.lora_magnitude_vector", ("x", "lora_magnitude_vector")),
        ("x.lora_magnitude_vector.weight", ("x", "lora_magnitude_vector")),
        ("x.lora_magnitude_vector.default", ("x", "lora_magnitude_vector")),
        ("x.lora_magnitude_vector.default.weight", ("x", "lora_magnitude_vector")),
        ("x.0.ia3_l", ("x.0", "ia3_l")),
        ("x.0.ia3_l.default", ("x.0", "ia3_l")),
        ("x.lora_B.bias", ("x", "up_bias")),
        ("x.lora_B.default.bias", ("x", "up_bias")),
        ("oft_unet_x.oft_blocks", ("oft_unet_x", "oft_blocks")),
        ("lora_unet_x.w_norm", ("lora_unet_x", "w_norm")),
        ("lora_unet_x.weight", ("lora_unet_x", "weight")),
        ("lora_unet_x.a1.weight", ("lora_unet_x", "a1")),
        ("lora_unet_x.what.ever", ("lora_unet_x", "what.ever")),
        ("lora_unet_x.what.weight", ("lora_unet_x.what", "weight")),
        ("lora_unet_x_attn1.to_q.lora_magnitude_vector", ("lora_unet_x_attn1.to_q", "lora_magnitude_vector")),
        ("a.b.what", ("a.b", "what")),
        ("a.b.weight", ("a.b", "weight")),
        ("emb_params", ("", "emb_params")),
        ("alpha", ("", "alpha")),
        (".alpha", ("", "alpha")),
        ("", ("", "")),
    ],
)
def test_names(tensor: str, parts: tuple[str, str]) -> None:
    assert split(tensor) == parts


@pytest.mark.parametrize(
    ("leaves", "name"),
    [
        ({"down", "up"}, "lora"),
        ({"down", "up", "mid", "alpha", "scale"}, "lora"),
        (LOHA | {"alpha"}, "loha"),
        ({"lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}, "lokr"),
        ({"weight", "on_input"}, "ia3"),
        ({"ia3_l"}, "ia3"),
        ({"diff", "diff_b"}, "full+bias"),
        ({"diff_b"}, "bias"),
        ({"w_norm", "b_norm"}, "norm"),
        (GLORA | {"alpha"}, "glora"),
        ({"oft_blocks", "alpha", "rescale"}, "oft"),
        ({"oft_diag"}, "oft"),
        ({"down", "up", "dora_scale"}, "lora+dora"),
        (LOHA | {"dora_scale"}, "loha+dora"),
        ({"lokr_w1", "lokr_w2", "dora_scale", "diff_b"}, "lokr+dora+bias"),
        ({"down", "up", "bias"}, "lora+dense"),
        ({"down", "up", "bias_indices", "bias_values", "bias_size"}, "lora+dense"),
        ({"down", "up", "up_bias"}, "lora+bias"),
    ],
)
def test_every_kind_is_told_by_its_leaves(leaves: set[str], name: str) -> None:
    assert claim(leaves).name == name
    assert any(map(is_adapter_leaf, leaves))


def test_blocks_of_four_axes_are_boft() -> None:
    assert claim({"oft_blocks"}, shapes={"oft_blocks": (2, 4, 2, 2)}).name == "boft"
    assert claim({"oft_blocks"}, shapes={"oft_blocks": (4, 2, 2)}).name == "oft"


def test_every_leaf_of_every_kind_is_split_off() -> None:
    for owner in (*KINDS, *MODIFIERS):
        for leaf, spellings in owner.spellings.items():
            for spelling in spellings:
                for module in ("lora_unet_x", "unet.a.0"):
                    assert split(f"{module}.{spelling.replace('*', 'default')}") == (module, leaf)


@pytest.mark.parametrize(("kind", "leaf"), [(kind, leaf) for kind, leaves in UNREAD.items() for leaf in leaves])
def test_kinds_that_are_not_read_are_named(kind: str, leaf: str) -> None:
    leaf = split(f"x.{leaf.replace('*', 'default')}")[1]
    with pytest.raises(UnknownKind, match=f"{kind}, which lora-edge does not read"):
        claim({leaf, "alpha"})
    with pytest.raises(UnknownKind, match=kind):
        claim({leaf, "down", "up"})


@pytest.mark.parametrize(
    "leaves", [set(), {"alpha"}, {"weight"}, {"bias"}, {"weight", "bias"}, {"down", "up", "weight"}]
)
def test_leaves_of_no_kind(leaves: set[str]) -> None:
    with pytest.raises(UnknownKind, match="which no known kind uses"):
        claim(leaves)


def test_layers_of_a_whole_model_are_no_adapter() -> None:
    assert not any(map(is_adapter_leaf, ("weight", "bias", "alpha", "scale")))


def test_leaves_of_two_kinds() -> None:
    with pytest.raises(AmbiguousKind, match="has the leaves of lora and of loha"):
        claim({"down", "up"} | LOHA)
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
    tensors = {"down": np.ones((3, 6), np.float32), "up": np.ones((5, 3), np.float32), "gain": np.ones(5, np.float32)}
    forms = kind.form(Update("x", (5, 6), tensors))
    assert isinstance(forms, tuple)
    assert [type(form) for form in forms] == [LowRank, Gain]
