"""Operations element by element: arithmetic, comparisons, logic, functions of one number, casts, choices."""

from collections.abc import Callable, Mapping

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, Op, fits
from lora_edge.mil.types import BY_NAME, Shape

BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.true_divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
UNARY: Mapping[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.asarray,
    "logical_not": np.logical_not,
    "round": np.rint,
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}


def _binary(function: Callable[[Array, Array], Array]) -> Op:
    def apply(x: Array, y: Array, *, declared: tuple[Shape, ...]) -> Array:
        fits(declared, np.broadcast_shapes(x.shape, y.shape))
        return function(x, y)

    return apply


def _unary(function: Callable[[Array], Array]) -> Op:
    def apply(x: Array) -> Array:
        return function(x)

    return apply


def rsqrt(x: Array, epsilon: float = 1e-12) -> Array:
    return 1 / np.sqrt(x + float(epsilon))


def inverse(x: Array, epsilon: float = 1e-4) -> Array:
    return 1 / (x + float(epsilon))


def log(x: Array, epsilon: float = 1e-45) -> Array:
    return np.log(x + float(epsilon))


def clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.clip(x, alpha, beta)


def cast(x: Array, dtype: str) -> Array:
    """Fractions are cut off, as C does."""
    return x.astype(BY_NAME[dtype].dtype)


def select(cond: Array, a: Array, b: Array, *, declared: tuple[Shape, ...]) -> Array:
    fits(declared, np.broadcast_shapes(cond.shape, a.shape, b.shape))
    return np.where(cond, a, b)


OPS: Family = {
    **{name: _binary(function) for name, function in BINARY.items()},
    **{name: _unary(function) for name, function in UNARY.items()},
    "rsqrt": rsqrt,
    "inverse": inverse,
    "log": log,
    "clip": clip,
    "cast": cast,
    "select": select,
}
