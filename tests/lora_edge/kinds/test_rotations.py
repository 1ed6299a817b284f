"""OFT and BOFT against LyCORIS' functions (float32 inside) and the Cayley formula in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from lycoris.functional import boft, diag_oft

from lora_edge.errors import AdapterValueError, BaseNeeded
from lora_edge.forms import LowRank
from lora_edge.kinds import Update
from lora_edge.kinds.oft import OFT

LAYERS = [(16, 10), (16, 24), (16, 4, 3, 3)]


def rotation(blocks: Any, limit: float) -> Any:
    """R of every block, float64."""
    skew = blocks.astype(np.float64) - blocks.swapaxes(-1, -2)
    norm = np.sqrt((skew**2).sum())
    skew *= limit / norm if 0 < limit < norm else 1.0
    identity = np.eye(blocks.shape[-1])
    return (identity + skew) @ np.linalg.inv(identity - skew)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("blocks", [2, 4, 16])
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.05, 1e4])
def test_oft(layer: Any, blocks: int, rescaled: bool, alpha: Any, random: Any, check: Any) -> None:
    n = layer[0] // blocks
    weight, values = random(*layer), random(blocks, n, n) * np.float32(0.3)
    rescale = random(layer[0], *(1 for _ in layer[1:]))
    tensors = {"oft_blocks": values} | ({"rescale": rescale} if rescaled else {})
    tensors |= {} if alpha is None else {"alpha": np.float32(alpha)}
    limit = (alpha or 0.0) * layer[0]
    own = weight.astype(np.float64).reshape(blocks, n, *layer[1:])
    wanted = np.einsum("knm,kn...->km...", rotation(values, limit), own).reshape(layer)
    wanted = wanted * rescale.astype(np.float64) if rescaled else wanted
    check(tensors, weight, wanted)
    theirs = diag_oft._diff_weight(
        torch.from_numpy(weight), torch.from_numpy(values), torch.from_numpy(rescale) if rescaled else None, limit
    )
    np.testing.assert_allclose(wanted - weight, theirs.numpy(), atol=2e-5)


def test_kohyas_own_oft_stands_still_at_alpha_0(random: Any) -> None:
    tensors = {"oft_blocks": random(4, 4, 4), "alpha": np.zeros((), np.float32)}
    weight = random(16, 10)
    for name, still in (("oft_unet_x", True), ("lora_unet_x", False)):
        (made,) = OFT.form(Update(name, (16, 10), tensors, base_weight=lambda: weight))
        assert isinstance(made, LowRank)
        assert (not (made.down @ made.up).any()) == still


@pytest.mark.parametrize("layer", LAYERS)
def test_old_files_hold_the_rotation_itself(layer: Any, random: Any, check: Any) -> None:
    weight, values = random(*layer), random(4, 4, 4)
    own = weight.astype(np.float64).reshape(4, 4, *layer[1:])
    check({"oft_diag": values}, weight, np.einsum("knm,kn...->km...", values, own).reshape(layer))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("stages", "n"), [(1, 4), (3, 4), (4, 2), (2, 8)])
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_boft(layer: Any, stages: int, n: int, rescaled: bool, alpha: float, random: Any, check: Any) -> None:
    weight, values = random(*layer), random(stages, layer[0] // n, n, n) * np.float32(0.3)
    rescale = random(layer[0], *(1 for _ in layer[1:]))
    theirs = boft._diff_weight(
        torch.from_numpy(weight),
        torch.from_numpy(values),
        torch.from_numpy(rescale) if rescaled else None,
        alpha * layer[0],
        1,
    )
    tensors = {"oft_blocks": values, "alpha": np.float32(alpha)} | ({"rescale": rescale} if rescaled else {})
    check(tensors, weight, weight + theirs.double().numpy())


def test_blocks_beyond_float32(random: Any, form: Any) -> None:
    n = 600
    with pytest.raises(AdapterValueError, match="makes a rotation that is not finite"):
        form((n, 2), {"oft_blocks": np.triu(np.full((1, n, n), 3e38))}, base_weight=lambda: random(n, 2))


def test_without_a_base(random: Any, form: Any) -> None:
    for kind, blocks in (("oft", random(4, 4, 4)), ("boft", random(1, 4, 4, 4))):
        with pytest.raises(BaseNeeded, match=f"is of the kind {kind}, which needs the weights of the base"):
            form((16, 10), {"oft_blocks": blocks})


@pytest.mark.parametrize(
    ("layer", "shapes", "sentence"),
    [
        ((16, 10), {"oft_blocks": (4, 4, 3)}, r"has oft_blocks \[4, 4, 3\] where the layer has 16 output channels"),
        ((16, 10), {"oft_blocks": (4, 5, 5)}, "where the layer has 16 output channels"),
        ((16, 10), {"oft_blocks": (16,)}, "where the layer has 16 output channels"),
        ((16, 10), {"oft_blocks": (4, 4, 4), "oft_diag": (4, 4, 4)}, "needs one of"),
        ((16, 10), {"oft_blocks": (4, 4, 4), "rescale": (15, 1)}, "where the layer has 16 channels"),
        ((16, 10), {"oft_blocks": (4, 4, 4, 4)}, r"has oft_blocks \[4, 4, 4, 4\]"),
        ((16, 10), {"oft_blocks": (0, 4, 4, 4)}, "where the layer has 16 output channels"),
        ((15, 10), {"oft_blocks": (1, 5, 3, 3)}, "where the layer has 15 output channels"),
        ((16, 10), {"oft_blocks": (1, 4, 4, 4), "rescale": (4,)}, "where the layer has 16 channels"),
        ((16,), {"oft_blocks": (4, 4, 4)}, "is a norm"),
    ],
)
def test_refusals(layer: Any, shapes: Any, sentence: str, refused: Any) -> None:
    refused(layer, shapes, sentence)
