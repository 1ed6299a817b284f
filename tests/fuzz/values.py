"""Numbers that no calculation survives, in tensors that are otherwise right."""

from collections.abc import Callable, Mapping
from math import prod
from random import Random

import numpy as np

from lora_edge.tensorfile import CODED, DTYPES

from .draft import FLOATS, Array, Draft, encoded

SCALARS = ("alpha", "scale", "on_input")
ALPHAS = (0.0, -1.0, 1e-45, 1e-30, 1e30, 3e38, 1e300, float("nan"), float("inf"), -float("inf"))


def _floats(made: Draft) -> list[int]:
    found = [index for index, (_, item) in enumerate(made.entries) if item["dtype"] in (*FLOATS, "BF16", *CODED)]
    return [index for index in found if prod(made.entries[index][1]["shape"])]


def _largest(dtype: str) -> float:
    if dtype in CODED:
        return float(np.nanmax(CODED[dtype][np.isfinite(CODED[dtype])]))
    return {"BF16": 3.38e38}.get(dtype) or float(np.finfo(DTYPES[dtype]).max)


def odd(dtype: str, value: float) -> bytes:
    """One number as a file has it; where an 8-bit float has no such code, its NaN."""
    if dtype in CODED and not np.isfinite(value):
        return bytes([0x7F if dtype == "F8_E4M3" or np.isnan(value) else 0x7C])
    if dtype == "BF16" and np.isnan(value):
        return b"\xc0\x7f"
    return encoded(dtype, np.array([value]))


def _set(rng: Random, made: Draft, value: float, whole: bool) -> bytes:
    index = rng.choice(_floats(made))
    part, dtype = made.bytes_of(index), made.entries[index][1]["dtype"]
    one = odd(dtype, value)
    count = (part.stop - part.start) // len(one)
    if whole:
        made.data[part] = one * count
    else:
        at = part.start + len(one) * rng.choice((0, count - 1, rng.randrange(count)))
        made.data[at : at + len(one)] = one
    return made.dump()


def not_a_number(rng: Random, made: Draft) -> bytes:
    return _set(rng, made, float("nan"), rng.random() < 0.3)


def an_infinity(rng: Random, made: Draft) -> bytes:
    return _set(rng, made, rng.choice((float("inf"), -float("inf"))), rng.random() < 0.3)


def the_largest_numbers(rng: Random, made: Draft) -> bytes:
    """In one tensor or in all, so that their products are beyond float32."""
    indices = _floats(made)
    for index in indices if rng.random() < 0.6 else [rng.choice(indices)]:
        dtype = made.entries[index][1]["dtype"]
        _fill(made, index, np.full(made.entries[index][1]["shape"], rng.choice((1, -1)) * _largest(dtype)))
    return made.dump()


def the_smallest_numbers(rng: Random, made: Draft) -> bytes:
    """Denormals: where norms and gains are divided by them."""
    for index in _floats(made):
        dtype = made.entries[index][1]["dtype"]
        if rng.random() < 0.7:
            least = 2.0**-16 if dtype in CODED else 1e-40 if dtype == "BF16" else float(np.finfo(DTYPES[dtype]).tiny)
            _fill(made, index, np.full(made.entries[index][1]["shape"], least / rng.choice((1, 4))))
    return made.dump()


def nothing_but_zeros(rng: Random, made: Draft) -> bytes:
    for index in _floats(made):
        if rng.random() < 0.6:
            part = made.bytes_of(index)
            made.data[part] = bytes(part.stop - part.start)
    return made.dump()


def any_bits(rng: Random, made: Draft) -> bytes:
    index = rng.choice(_floats(made))
    part = made.bytes_of(index)
    made.data[part] = rng.randbytes(part.stop - part.start)
    return made.dump()


def a_float64_beyond_float32(rng: Random, made: Draft) -> bytes:
    index = rng.choice(_floats(made))
    shape = made.entries[index][1]["shape"]
    made.put(index, "F64", shape, np.full(shape, rng.choice((1e39, -1e300, 1e-300, 3.5e38))).tobytes())
    return made.dump()


def whole_numbers(rng: Random, made: Draft) -> bytes:
    """Integers and booleans where floats belong."""
    index = rng.randrange(len(made.entries))
    shape = made.entries[index][1]["shape"]
    dtype = rng.choice(("I64", "I32", "U8", "BOOL"))
    value = {"I64": rng.choice((2**63 - 1, -(2**63), 3)), "I32": -(2**31)}.get(dtype, 1)
    made.put(index, dtype, shape, encoded(dtype, np.full(shape, value)))
    return made.dump()


def an_odd_alpha(rng: Random, made: Draft) -> bytes:
    """Of every module or of one; added where there is none."""
    found = [index for index, (name, _) in enumerate(made.entries) if name.endswith(SCALARS)]
    value = np.array(rng.choice(ALPHAS))
    shaped = rng.choice((value, value.reshape(1), np.full(rng.choice((0, 2, 8, 300)), value), np.full((2, 2), 1.0)))
    dtype = rng.choice(("F32", "F64", "BF16"))
    if not found:
        name = made.entries[rng.randrange(len(made.entries))][0]
        module = name.split(".")[0] if name.startswith("lora_") else name.rsplit(".", 2)[0]
        made.add(f"{module}.{rng.choice(('alpha', 'scale'))}", dtype, shaped)
        return made.dump()
    for index in found if rng.random() < 0.5 else [rng.choice(found)]:
        made.put(index, dtype, list(shaped.shape), encoded(dtype, shaped))
    return made.dump()


def _fill(made: Draft, index: int, array: Array) -> None:
    made.data[made.bytes_of(index)] = encoded(made.entries[index][1]["dtype"], array)


MUTATIONS: Mapping[str, Callable[[Random, Draft], bytes]] = {
    made.__name__.replace("_", " "): made
    for made in (
        not_a_number,
        an_infinity,
        the_largest_numbers,
        the_smallest_numbers,
        nothing_but_zeros,
        any_bits,
        a_float64_beyond_float32,
        whole_numbers,
        an_odd_alpha,
    )
}
