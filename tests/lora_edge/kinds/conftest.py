"""What a kind's forms do to a layer, in float64, and one check of that against a wanted weight."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Bias, Gain, LowRank, NormDelta
from lora_edge.kinds import Kind, Update, claim

MULTIPLIERS = (0.0, 0.7, 1.0, -0.5)
BOUND = 1e-4  # of the change
Tensors = Mapping[str, Any]


def effective(forms: Any, weight: Any, multiplier: float) -> Any:
    """W' = W (1 + m (gain - 1)) + m scale (down @ up)^T, as forms.py says, float64."""
    start = weight.astype(np.float64)
    gain, added = np.ones_like(start), np.zeros_like(start)
    for form in forms:
        if isinstance(form, Gain):
            spread = [1] * start.ndim
            spread[1 if form.axis == "in" else 0] = -1
            gain = gain + multiplier * (form.values.astype(np.float64).reshape(spread) - 1)
        elif isinstance(form, LowRank):
            product = form.down.astype(np.float64) @ form.up.astype(np.float64)
            added = added + multiplier * form.scale * product.T.reshape(start.shape)
    return start * gain + added


def claimed(tensors: Tensors) -> Kind:
    return claim(tensors.keys(), shapes={leaf: array.shape for leaf, array in tensors.items()})


def check(tensors: Tensors, weight: Any, wanted: Any, bias: Any = None, **settings: Any) -> Any:
    """The forms make W + m (wanted - W) at every multiplier, take what their size says, and are returned.

    Args:
        tensors: leaf -> array.
        weight: the base's.
        wanted: W' at multiplier 1, float64.
        bias: the layer's own.
        settings: more of the Update.
    """
    tensors = {leaf: np.asarray(array) for leaf, array in tensors.items()}
    kind = claimed(tensors)
    settings = {"base_weight": lambda: weight, "base_bias": lambda: bias, "has_bias": bias is not None} | settings
    forms = kind.form(Update("x", weight.shape, tensors, **settings))
    change = np.asarray(wanted, np.float64) - weight
    for multiplier in MULTIPLIERS:
        made = effective(forms, weight, multiplier)
        assert np.abs(made - weight - multiplier * change).max() <= BOUND * np.abs(change).max(initial=0)
    assert np.array_equal(effective(forms, weight, 0.0), weight.astype(np.float64))
    shapes = {leaf: array.shape for leaf, array in tensors.items()}
    size = kind.size(shapes, weight.shape)
    assert sum(form.rank for form in forms if isinstance(form, LowRank)) == size.lanes
    unsaid = 4 * weight.shape[0] * ("ia3_l" in tensors)  # whether there is a bias to scale, shapes do not say
    assert 0 <= size.nbytes(weight.shape) - sum(form.nbytes for form in forms) <= unsaid
    for form in forms:
        for array in vars(form).values():
            if isinstance(array, np.ndarray):
                assert array.dtype == np.float32 and array.flags.c_contiguous
    return forms


@pytest.fixture(name="check")
def _check() -> Callable[..., Any]:
    return check


@pytest.fixture(name="refused")
def _refused() -> Callable[..., None]:
    """refused(layer, shapes, sentence): tensors of these shapes are refused, before and when they are read."""

    def refuse(layer: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], sentence: str) -> None:
        tensors = {leaf: np.ones(shape, np.float32) for leaf, shape in shapes.items()}
        kind = claimed(tensors)
        with pytest.raises(AdapterMismatch, match=sentence):
            kind.size(shapes, layer)
        with pytest.raises(AdapterMismatch, match=sentence):
            kind.form(Update("x", layer, tensors, base_weight=lambda: np.ones(layer, np.float32)))

    return refuse


@pytest.fixture(name="form")
def _form() -> Callable[..., Any]:
    """form(layer, tensors, ...) -> forms."""

    def make(layer: tuple[int, ...], tensors: Tensors, **settings: Any) -> tuple[Any, ...] | NormDelta:
        arrays = {leaf: np.asarray(array) for leaf, array in tensors.items()}
        with np.errstate(all="ignore"):
            return claimed(arrays).form(Update("x", layer, arrays, **settings))

    return make


@pytest.fixture
def deltas() -> Callable[[Any], Any]:
    """The sum of the Biases among forms, float64."""
    return lambda forms: sum(form.delta.astype(np.float64) for form in forms if isinstance(form, Bias))


@pytest.fixture
def random() -> Callable[..., Any]:
    """random(*shape) -> normal float32."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)
