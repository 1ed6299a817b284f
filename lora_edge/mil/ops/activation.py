"""Activations: what stands between layers."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family

# erf(x) = x P(x²) / Q(x²) on [-4, 4], highest power first: the rational function of Eigen's `erf` for floats
# (generic_fast_erf_float), within a few units in the last place.
ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
         -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
         -1.42647390514189e-02)  # fmt: skip


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    made = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        made *= x
        made += coefficient
    return made


_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    if x.dtype == np.float64:
        return np.asarray(_erf(x), np.float64)
    inside = np.clip(x, -4, 4)
    square = inside * inside
    made: Array = np.clip(inside * _polynomial(ERF_P, square) / _polynomial(ERF_Q, square), -1, 1)
    return made


def sigmoid(x: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-x))
    return made


def silu(x: Array) -> Array:
    made: Array = x * sigmoid(x)
    return made


def softmax(x: Array, axis: Array | int = -1) -> Array:
    made: Array = np.exp(x - x.max(axis=int(axis), keepdims=True))
    made /= made.sum(axis=int(axis), keepdims=True)
    return made


def _gelu_tanh(x: Array) -> Array:
    inside: Array = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    made: Array = 0.5 * x * (1 + np.tanh(inside))
    return made


def _gelu_exact(x: Array) -> Array:
    made: Array = 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
    return made


GELU: Mapping[str, Callable[[Array], Array]] = {
    "EXACT": _gelu_exact,
    "TANH_APPROXIMATION": _gelu_tanh,
    "SIGMOID_APPROXIMATION": lambda x: x * sigmoid(1.702 * x),
}


def gelu(x: Array, mode: str = "EXACT") -> Array:
    return GELU[mode](x)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def leaky_relu(x: Array, alpha: float = 0.01) -> Array:
    return np.where(x >= 0, x, float(alpha) * x)


def softplus(x: Array) -> Array:
    return np.logaddexp(x, 0)


OPS: Family = {
    "erf": erf,
    "sigmoid": sigmoid,
    "silu": silu,
    "softmax": softmax,
    "gelu": gelu,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "softplus": softplus,
}
