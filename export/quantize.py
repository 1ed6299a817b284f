"""Weights in 8 or 4 bits: which layers, in how many bits, and the numbers themselves.

Codes are rounded to the nearest between the smallest and the largest weight of a block (zero included, so that it stays
zero), which is what onnxruntime's own quantizer does. Activations stay float32, and adapters are added beside.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.blockwise import Blockwise, packed
from lora_edge.export.slotted import REFERENCE_ROWS
from lora_edge.slots import Slot

BLOCKS = (32, 16)  # weights with one scale, best first; a layer whose patch divides by neither stays float32
SMALL = re.compile(r"conv_in|conv_out|time_embedding\..*")  # few numbers, and all that the model does rests on them


@dataclass(frozen=True)
class Way:
    """How a layer's weight lies in memory.

    Attributes:
        bits: of a code.
        product: whether codes are multiplied as they are, by MatMulNBits over patches of x; otherwise the weight is
            unpacked for the time of its own multiplication.
    """

    bits: int
    product: bool


_UNPACKED, _PRODUCT = Way(8, False), Way(4, True)


def _int4(slot: Slot, positions: int) -> Way:
    """A Conv over a large map is unpacked: the patches of all positions would take more memory than the weight."""
    return _UNPACKED if slot.kernel and REFERENCE_ROWS * positions > slot.out_features else _PRODUCT


# onnxruntime unpacks products of 8 bits too, and in one thread.
CHOICES: Mapping[str, Callable[[Slot, int], Way]] = {"int8": lambda slot, positions: _UNPACKED, "int4": _int4}


def block_of(slot: Slot) -> int:
    """Weights with one scale; 0 where the layer stays float32."""
    if SMALL.fullmatch(slot.name):
        return 0
    return next((block for block in BLOCKS if slot.patch % block == 0), 0)


def quantized(weight: FloatArray, way: Way, block: int) -> Blockwise:
    """A weight in codes.

    Args:
        weight: [out, in] or [out, in, kh, kw] float32.
        way: how it is to lie; what is multiplied as codes has its channels last.
        block: weights with one scale; divides those of a row.
    """
    rows = np.moveaxis(weight, 1, -1) if way.product else weight
    strided = weight.ndim > 2 and not way.product
    each, axis = ((len(weight), block, -1), 1) if strided else ((len(weight), -1, block), 2)
    blocks = rows.reshape(each)
    top = 2**way.bits - 1
    low, high = np.minimum(blocks.min(axis), 0), np.maximum(blocks.max(axis), 0)
    scales = ((high - low) / top).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1  # a block of zeros, whose codes are all its zero
    zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
    shown = np.rint(blocks / np.expand_dims(scales, axis)) + np.expand_dims(zeros, axis)
    codes = np.clip(shown, 0, top).astype(np.uint8)
    flat = packed(codes.reshape(len(weight), -1), way.bits)
    return Blockwise(way.bits, weight.shape, way.product, strided, flat, scales, packed(zeros, way.bits))
