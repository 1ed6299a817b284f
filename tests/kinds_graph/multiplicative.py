"""Kinds that turn, stretch or replace what is there: DoRA, IA3, OFT, BOFT, full differences and norms."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from .example import CHANGE, Array, Example, Formula, Make, Tensors, column
from .low_rank import loha_delta, lokr, lokr_delta, lora_delta, make_loha, make_lora

Axis = Literal["out", "in"]


def _norms(weight: Array, axis: Axis) -> Array:
    """Over everything but the axis, which stays: [out, 1(, 1, 1)] or [1, in(, 1, 1)]."""
    axes = tuple(index for index in range(weight.ndim) if index != (0 if axis == "out" else 1))
    return np.asarray(np.sqrt((weight**2).sum(axes, keepdims=True)))


def dora(name: str, make: Make, delta: Formula, axis: Axis, leaf: str = "dora_scale") -> Example:
    """W' = m * V / |V| with V = W + dW (Liu et al. 2024; LyCORIS, modules/base.py; peft, tuners/lora/dora.py)."""

    def made(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        norms = _norms(weight, axis)
        magnitude = norms * np.exp(rng.normal(0, 0.3, norms.shape))
        if leaf == "lora_magnitude_vector":  # a Linear's without axes, a Conv's on the second
            magnitude = magnitude.reshape(-1) if weight.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
        return {**make(weight, rng), leaf: magnitude}

    def formula(weight: Array, t: Tensors) -> Array:
        moved = weight + delta(weight, t)
        norms = _norms(moved, axis)
        return t[leaf].reshape(norms.shape) * moved / norms

    return Example(name, made, formula)


def _ia3(on_input: bool) -> Example:
    """W' = W * (1 + w) (LyCORIS, modules/ia3.py)."""

    def make(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        values = rng.normal(0, CHANGE, weight.shape[1 if on_input else 0])
        shaped = values if weight.ndim == 2 else values.reshape(1, -1, 1, 1)
        # LyCORIS holds the flag as an integer, and trainers save everything in the file's dtype.
        return {"weight": shaped, "on_input": np.array(1.0 if on_input else 0)}

    def formula(weight: Array, t: Tensors) -> Array:
        values = t["weight"].reshape(-1)
        return weight * (1 + (values.reshape(1, -1, *(1,) * (weight.ndim - 2)) if on_input else column(weight, values)))

    return Example(f"ia3: {'input' if on_input else 'output'}", make, formula)


def turns(blocks: Array, limit: float) -> Array:
    """Cayley: R = (I + Q)(I - Q)^-1 with Q = B - B^T, held to `limit` by its norm over all blocks unless that is 0."""
    q = blocks - np.swapaxes(blocks, -1, -2)
    norm = np.linalg.norm(q)
    q = q * (limit / norm) if 0 < limit < norm else q
    eye = np.eye(q.shape[-1])
    return np.asarray((eye + q) @ np.linalg.inv(eye - q))


def _limit(weight: Array, t: Tensors) -> float:
    return float(t["alpha"].reshape(())) * len(weight) if "alpha" in t else 0.0


def _rescaled(weight: Array, t: Tensors) -> Array:
    return weight * column(weight, t["rescale"].reshape(-1)) if "rescale" in t else weight


def oft_weight(weight: Array, t: Tensors) -> Array:
    """W'[block] = R^T W[block] (LyCORIS, functional/diag_oft.py)."""
    rotation = turns(t["oft_blocks"], _limit(weight, t)) if "oft_blocks" in t else t["oft_diag"]
    blocks = weight.reshape(*rotation.shape[:2], -1)
    return _rescaled(np.einsum("knm,kni->kmi", rotation, blocks).reshape(weight.shape), t)


def boft_weight(weight: Array, t: Tensors) -> Array:
    """Stage by stage, rows regrouped as in a butterfly (LyCORIS, functional/boft.py)."""
    rotation = turns(t["oft_blocks"], _limit(weight, t))
    size = rotation.shape[-1]
    rows = weight.reshape(len(weight), -1)
    for stage, blocks in enumerate(rotation):
        stride = 2**stage * size // 2
        grouped = rows.reshape(-1, 2, stride, rows.shape[1]).swapaxes(1, 2).reshape(-1, size, rows.shape[1])
        turned = np.einsum("bij,bjr->bir", blocks, grouped)
        rows = turned.reshape(-1, stride, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return _rescaled(rows.reshape(weight.shape), t)


def _oft(name: str, alpha: float = 0.0, rescale: bool = False, angle: float = 0.15) -> Example:
    def make(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        size = 4 if len(weight) > 4 else 2
        made = {"oft_blocks": rng.normal(0, angle, (len(weight) // size, size, size)), "alpha": np.array(alpha)}
        return made | ({"rescale": column(weight, 1 + rng.normal(0, 0.3, len(weight)))} if rescale else {})

    return Example(name, make, oft_weight)


def _make_oft_diag(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    size = 4 if len(weight) > 4 else 2
    return {"oft_diag": turns(rng.normal(0, 0.15, (len(weight) // size, size, size)), 0), "alpha": np.array(0.0)}


def _boft(name: str, alpha: float = 0.0, rescale: bool = False) -> Example:
    def make(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        size = 4 if len(weight) > 4 else 2
        count = len(weight) // size  # a power of two here
        blocks = rng.normal(0, 0.08, (count.bit_length(), count, size, size))
        made = {"oft_blocks": blocks, "alpha": np.array(alpha)}
        return made | ({"rescale": column(weight, 1 + rng.normal(0, 0.3, len(weight)))} if rescale else {})

    return Example(name, make, boft_weight)


def _spread(parameter: Array) -> float:
    return CHANGE * float(parameter.std() or 1.0)


def _make_full(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    return {"diff": rng.normal(0, _spread(weight), weight.shape), **_make_bias(weight, rng)}


def _make_bias(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    return {"diff_b": rng.normal(0, 0.2, len(weight))}


def _add(leaf: str) -> Callable[[Array, Tensors], Array]:
    return lambda parameter, t: parameter + t[leaf]


def _make_norm_weight(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    return {"w_norm": rng.normal(0, CHANGE, weight.shape)}


def _make_norm(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    return {leaf: rng.normal(0, CHANGE, weight.shape) for leaf in ("w_norm", "b_norm")}


INNER: tuple[tuple[str, Make, Formula], ...] = (
    ("lora", make_lora, lora_delta),
    ("loha", make_loha, loha_delta),
    ("lokr", lokr(True, False), lokr_delta),
)
AXES: tuple[Axis, ...] = ("out", "in")

EXAMPLES: tuple[Example, ...] = (
    *(dora(f"dora: {name}, {axis}", make, delta, axis) for name, make, delta in INNER for axis in AXES),
    dora("dora: peft", make_lora, lora_delta, "out", "lora_magnitude_vector"),
    _ia3(on_input=False),
    _ia3(on_input=True),
    Example("full", _make_full, _add("diff"), _add("diff_b")),
    Example("full: bias alone", _make_bias, bias=_add("diff_b")),
    Example("norm", _make_norm, _add("w_norm"), _add("b_norm"), norms=True),
    Example("norm: weight alone", _make_norm_weight, _add("w_norm"), norms=True),
    _oft("oft"),
    _oft("oft: constrained", alpha=0.03, angle=0.6),
    _oft("oft: rescale", rescale=True),
    Example("oft: diag", _make_oft_diag, oft_weight),
    _boft("boft"),
    _boft("boft: constrained, rescale", alpha=0.03, rescale=True),
)
