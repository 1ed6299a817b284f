"""Products of matrices: linear layers, matmul, einsum, attention."""

import math

import numpy as np

from lora_edge.arrays import Array
from lora_edge.mil.ops.activation import softmax
from lora_edge.mil.ops.shapes import Family, fits, flag
from lora_edge.mil.types import MAX_ELEMENTS, Shape


def linear(x: Array, weight: Array, bias: Array | None = None, *, declared: tuple[Shape, ...]) -> Array:
    """x [..., in], weight [out, in], bias [out]."""
    fits(declared, (*x.shape[:-1], weight.shape[0]))
    made = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        made += bias
    return made.reshape(declared[0])


def matmul(
    x: Array,
    y: Array,
    transpose_x: Array | bool = False,
    transpose_y: Array | bool = False,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    x = x.swapaxes(-1, -2) if flag(transpose_x) else x
    y = y.swapaxes(-1, -2) if flag(transpose_y) else y
    if min(x.ndim, y.ndim) < 2:
        raise ValueError("operands of fewer than two axes")
    fits(declared, (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))
    made: Array = x @ y
    return made


def einsum(values: list[Array], equation: str, *, declared: tuple[Shape, ...]) -> Array:
    """Two operands, each label once in an operand; done as one batch of matrix products."""
    terms, result = equation.replace(" ", "").split("->")
    first, second = terms.split(",")
    x, y = values
    sizes = dict(zip(first, x.shape, strict=True)) | dict(zip(second, y.shape, strict=True))
    alone = set(first) ^ set(second)
    repeated = any(len(set(term)) != len(term) for term in (first, second, result))
    if repeated or not alone <= set(result) <= set(first + second):
        raise ValueError(f"the equation {equation!r} is not a product of two matrices")
    fits(declared, [sizes[label] for label in result])
    batch = [label for label in result if label in first and label in second]
    inner = [label for label in first if label in second and label not in result]
    rows = [label for label in result if label not in second]
    columns = [label for label in result if label not in first]

    def matrices(value: Array, term: str, down: list[str], across: list[str]) -> Array:
        ordered = value.transpose([term.index(label) for label in (*batch, *down, *across)])
        counts = [math.prod(sizes[label] for label in group) for group in (batch, down, across)]
        return ordered.reshape(counts)

    made = matrices(x, first, rows, inner) @ matrices(y, second, inner, columns)
    order = [*batch, *rows, *columns]
    shaped = made.reshape([sizes[label] for label in order])
    return shaped.transpose([order.index(label) for label in result])


def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None, *, declared: tuple[Shape, ...]
) -> Array:
    """query [..., L, E], key [..., S, E], value [..., S, V], mask [..., L, S] added, or True where it may look."""
    fits(declared, (*query.shape[:-1], value.shape[-1]))
    outer = query.shape[:-2]
    tokens, keys = query.shape[-2], key.shape[-2]
    if tokens * keys > MAX_ELEMENTS:
        raise ValueError(f"attention of {tokens} to {keys} tokens")
    if attn_mask is not None and attn_mask.dtype == bool:
        attn_mask = np.where(attn_mask, np.float32(0), np.float32(-np.inf))
    masks = None if attn_mask is None else np.broadcast_to(attn_mask, (*outer, tokens, keys))
    scale = 1 / math.sqrt(query.shape[-1])
    made = np.empty(declared[0], np.result_type(query, key, value))
    # One head at a time: all of them at once is what makes attention take memory.
    for head in np.ndindex(outer):
        scores = (query[head] * scale) @ key[head].T
        made[head] = softmax(scores if masks is None else scores + masks[head]) @ value[head]
    return made


OPS: Family = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
