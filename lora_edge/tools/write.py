"""Writing safetensors files, and files and folders that appear whole or not at all.

The layout is that of lora_edge/tensorfile.py, as the reference implementation writes it: largest items first, then by
name, and the header padded to eight bytes, so that every tensor is aligned. Tensors are made one at a time, while the
file is written.
"""

import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import AdapterValueError, LoraEdgeError, RequestError
from lora_edge.tensorfile import DTYPES

SUFFIX = ".safetensors"

_DTYPE_OPTIONS: Mapping[str, str] = {"fp16": "F16", "fp32": "F32", "bf16": "BF16"}


@dataclass(frozen=True)
class Tensor:
    """A tensor that is made when its turn to be written comes.

    Attributes:
        dtype: as the file spells it, a key of `lora_edge.tensorfile.DTYPES`.
        shape: of the tensor.
        make: gives the array in the file's own bits (see `encode`); called once.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def stored_dtype(option: str) -> str:
    """The file's spelling of `fp16`, `bf16` or `fp32`.

    Raises:
        RequestError: another word.
    """
    if option not in _DTYPE_OPTIONS:
        raise RequestError(f"there is no dtype {option!r}; adapters are written in {', '.join(_DTYPE_OPTIONS)}")
    return _DTYPE_OPTIONS[option]


def encode(array: Array, dtype: str, what: str) -> Array:
    """Floats in the bits of a file, rounded to nearest even.

    Args:
        array: float32 or float64.
        dtype: F64, F32, F16 or BF16.
        what: names the tensor in a refusal.

    Raises:
        AdapterValueError: a number is not finite, or too large for the dtype.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        made, finite = _ENCODERS[dtype](array)
    if not finite:
        raise AdapterValueError(f"{what} has numbers that do not fit {dtype}; choose a wider dtype")
    return made


def _bfloat16(array: Array) -> tuple[Array, bool]:
    """The upper half of float32 after rounding to nearest even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    made = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return made, bool(np.isfinite(array).all() and ((made & 0x7F80) != 0x7F80).all())


def _plain(dtype: str) -> Callable[[Array], tuple[Array, bool]]:
    def cast(array: Array) -> tuple[Array, bool]:
        made = np.ascontiguousarray(array, DTYPES[dtype])
        return made, bool(np.isfinite(made).all())

    return cast


_ENCODERS: Mapping[str, Callable[[Array], tuple[Array, bool]]] = {
    "BF16": _bfloat16,
    **{dtype: _plain(dtype) for dtype in ("F64", "F32", "F16")},
}

WRITABLE = tuple(_ENCODERS)


def same_in(dtype: str, one: Array, other: Array) -> bool:
    """Whether two arrays of floats are equal once they are rounded to a dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.array_equal(_ENCODERS[dtype](one)[0], _ENCODERS[dtype](other)[0]))


def floats(array: Array, dtype: str, name: str) -> Tensor:
    """A tensor out of an array of floats that is in memory already; raises as `encode` when it is written."""
    return Tensor(dtype, array.shape, lambda: encode(array, dtype, name))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; it appears when it is whole.

    Raises:
        what a tensor's `make` raises; nothing is left then.
        OSError: the disk's own.
    """
    names = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].itemsize, name))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(header(names, tensors, metadata))
            for name in names:
                file.write(_bits(name, tensors[name]))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def header(names: Sequence[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors in a file that holds them in this order, its own length first."""
    items: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        items[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(items, separators=(",", ":")).encode()  # ASCII, whatever a stranger's names are made of
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bits(name: str, tensor: Tensor) -> bytes:
    made = np.ascontiguousarray(tensor.make())
    if made.dtype != DTYPES[tensor.dtype] or made.size != math.prod(tensor.shape):
        raise ValueError(f"{name} was announced as {tensor.dtype} {tensor.shape} and is {made.dtype} {made.shape}")
    return made.tobytes()


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before work is done for it.

    Raises:
        RequestError: another ending, no such folder, or something is there and may not be replaced.
    """
    if path.suffix != SUFFIX:
        raise RequestError(f"{path} does not end in {SUFFIX}, which is what is written")
    if not path.parent.is_dir():
        raise RequestError(f"the folder {path.parent} does not exist")
    if path.exists() and not (overwrite and path.is_file()):
        hint = "pass overwrite (--force) to replace it" if path.is_file() else "it is no file"
        raise RequestError(f"{path} exists already; {hint}")


@contextmanager
def fresh_folder(target: Path, overwrite: bool, error: type[LoraEdgeError], mark: str) -> Iterator[Path]:
    """A folder to fill, renamed to `target` when the block ends without an error and removed otherwise.

    Args:
        target: the folder's final name.
        overwrite: replace a folder that has the file `mark`; any other is never replaced.
        error: what a refusal raises.
        mark: path of a file that says that a folder is of the kind that is written.
    """
    if not target.parent.is_dir():
        raise error(f"the folder {target.parent} for {target.name} does not exist")
    if target.exists() and not overwrite:
        raise error(f"{target} exists already; pass overwrite (--force) to replace it")
    if target.exists() and not (target / mark).is_file():
        raise error(f"{target} has no {mark} and is therefore not replaced; choose another name")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
