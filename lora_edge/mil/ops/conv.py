"""Convolution over pictures, as products of matrices (im2col), a few rows of the picture at a time."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lora_edge.arrays import Array
from lora_edge.mil.ops.shapes import Family, fits, ints
from lora_edge.mil.types import Shape

COLUMNS = 1 << 24  # numbers gathered at once: 64 MiB

Pads = list[tuple[int, int]]


def _same(sizes: list[int], kernel: list[int], strides: list[int], _: list[int]) -> Pads:
    """As many results as strides fit; where the padding is odd, the larger half comes after."""
    totals = [
        max(0, span - (size % stride or stride)) for size, span, stride in zip(sizes, kernel, strides, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


PADDING: Mapping[str, Callable[[list[int], list[int], list[int], list[int]], Pads]] = {
    "valid": lambda sizes, kernel, strides, pad: [(0, 0)] * len(sizes),
    "custom": lambda sizes, kernel, strides, pad: list(zip(pad[::2], pad[1::2], strict=True)),
    "same": _same,
    "same_lower": lambda *told: [(after, before) for before, after in _same(*told)],
}


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
    *,
    declared: tuple[Shape, ...],
) -> Array:
    """x [rows, in, height, width], weight [out, in / groups, kh, kw], bias [out]."""
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError("only convolutions over two axes are evaluated")
    step, spread, count = ints(strides, (1, 1)), ints(dilations, (1, 1)), int(groups)
    spans = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], spread, strict=True)]
    sizes = list(x.shape[2:])
    pads = PADDING[pad_type](sizes, spans, step, ints(pad, (0, 0, 0, 0)))
    if min(step + spread + [count]) < 1 or min(min(pair) for pair in pads) < 0:
        raise ValueError("a stride, a dilation or a number of groups below 1, or a negative padding")
    if x.shape[1] != weight.shape[1] * count or weight.shape[0] % count:
        raise ValueError(f"weight {list(weight.shape)} for {x.shape[1]} channels in {count} groups")
    padded = [size + sum(pair) for size, pair in zip(sizes, pads, strict=True)]
    out = [(size - span) // stride + 1 for size, span, stride in zip(padded, spans, step, strict=True)]
    fits(declared, (x.shape[0], weight.shape[0], *out))
    if any(map(any, pads)):
        # A padding may be wide while the result, with its strides, is small.
        if np.prod(padded, dtype=object) > 64 * (np.prod(sizes, dtype=object) + np.prod(out, dtype=object) + 4096):
            raise ValueError(f"a padding from {sizes} to {padded}")
        x = np.pad(x, [(0, 0), (0, 0), *pads])
    made = np.empty(declared[0], np.result_type(x, weight))
    wide_in, wide_out = weight.shape[1], weight.shape[0] // count
    for group in range(count):
        outs = slice(group * wide_out, (group + 1) * wide_out)
        part = x[:, group * wide_in : (group + 1) * wide_in]
        _group(part, np.ascontiguousarray(weight[outs]), spans, step, spread, made[:, outs])
    if bias is not None:
        made += bias[:, None, None]
    return made


def _group(x: Array, weight: Array, spans: list[int], step: list[int], spread: list[int], made: Array) -> None:
    """Fill `made` [rows, out, height, width]."""
    windows = sliding_window_view(x, spans, axis=(2, 3))
    windows = windows[:, :, :: step[0], :: step[1], :: spread[0], :: spread[1]].transpose(0, 1, 4, 5, 2, 3)
    matrix = weight.reshape(len(weight), -1)
    height, width = made.shape[2:]
    lines = max(1, COLUMNS // max(1, matrix.shape[1] * width))
    for row, window in enumerate(windows):
        for top in range(0, height, lines):
            columns = window[..., top : top + lines, :].reshape(matrix.shape[1], -1)
            made[row, :, top : top + lines] = (matrix @ columns).reshape(len(matrix), -1, width)


OPS: Family = {"conv": conv}
