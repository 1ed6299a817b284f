"""Weights in blocks of a few bits: W = (code - zero) * scale, with a scale and a zero for every block of a row.

A row is what makes one output feature. Two layouts of its patch, as graphs multiply them: torch's (in, kh, kw), and
channels last (kh, kw, in). Codes of 4 bits lie two in a byte, the earlier one in the lower half, and rows begin at
whole bytes: the layout of onnxruntime's MatMulNBits, whose codes of 8 bits DequantizeLinear of ONNX reads too.
"""

from dataclasses import dataclass

import numpy as np

from lora_edge.arrays import Array, FloatArray

BITS = (4, 8)


@dataclass(frozen=True)
class Blockwise:
    """A weight as it lies in memory.

    Attributes:
        bits: of a code, 4 or 8.
        shape: of the weight in torch's layout, [out, in] or [out, in, kh, kw].
        channels_last: whether a row is ordered (kh, kw, in).
        strided: whether block i of n is every n-th weight of a row from the i-th on, and not a run of weights; programs
            unpack such blocks several times as fast, a block's neighbours then being of other blocks.
        codes: [out, bytes of a row] uint8.
        scales: [out, blocks] float32.
        zeros: [out, bytes of a row's zeros] uint8.
    """

    bits: int
    shape: tuple[int, ...]
    channels_last: bool
    strided: bool
    codes: Array
    scales: FloatArray
    zeros: Array

    def dequantized(self) -> FloatArray:
        """The weight that the codes stand for, float32 in torch's layout."""
        rows, blocks = self.scales.shape
        patch = int(np.prod(self.shape[1:]))
        each, axis = ((rows, -1, blocks), 1) if self.strided else ((rows, blocks, -1), 2)
        made = unpacked(self.codes, self.bits, patch).reshape(each).astype(np.float32)
        made -= np.expand_dims(unpacked(self.zeros, self.bits, blocks).astype(np.float32), axis)
        made *= np.expand_dims(self.scales, axis)
        if not self.channels_last:
            return made.reshape(self.shape)
        out, channels, *kernel = self.shape
        return np.ascontiguousarray(np.moveaxis(made.reshape(out, *kernel, channels), -1, 1))


def row_bytes(count: int, bits: int) -> int:
    """Bytes of a row of so many codes."""
    return -(-count * bits // 8)


def packed(codes: Array, bits: int) -> Array:
    """[rows, count] uint8, one code each -> [rows, bytes] uint8."""
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.asarray(even[:, 0::2] | (even[:, 1::2] << 4))


def unpacked(held: Array, bits: int, count: int) -> Array:
    """The inverse of `packed`; `count` codes of each row."""
    if bits == 8:
        return held
    return np.stack([held & 15, held >> 4], axis=-1).reshape(len(held), -1)[:, :count]
