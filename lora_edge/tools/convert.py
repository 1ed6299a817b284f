"""Files that are no safetensors -> safetensors: what torch pickled, and embeddings in pictures."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lora_edge.adapterfile import FOLDER_PICKLES
from lora_edge.errors import AdapterFileDamaged, AdapterNotFound, PickleRefused, RequestError
from lora_edge.jsonfile import read_object
from lora_edge.peftconfig import CONFIG_FILE, METADATA_KEY
from lora_edge.tensorfile import FOREIGN, TensorFile
from lora_edge.tools.flatten import Flat, flatten
from lora_edge.tools.pickles import Wrong
from lora_edge.tools.pngembedding import SIGNATURE, read_png
from lora_edge.tools.torchfile import open_torch
from lora_edge.tools.torchnames import StoredTensor
from lora_edge.tools.write import Tensor, check_file, write_tensors

MAX_GROWTH = 8  # times the size of the file: storages may be shared, but not to fill a disk
FREE = 2**20  # bytes that a file of any size may become


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        source, path: the file that was read and the one that was written.
        tensors: how many.
        nbytes: size of the written file.
        dtypes: as safetensors spells them.
        metadata: the strings in its header.
        left_out: tensors beside a `state_dict`, such as an optimizer's, that were not written.
    """

    source: Path
    path: Path
    tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...]


def convert(source: str | Path, target: str | Path, overwrite: bool = False) -> Converted:
    """Write the tensors of a pickle or a picture as safetensors, names, dtypes and shapes as they are.

    Args:
        source: a `.pt`, `.bin` or `.ckpt` that `torch.save` wrote, a PNG with an embedding, or a folder of PEFT or
            diffusers with such weights, whose `adapter_config.json` goes into the header.
        target: the `.safetensors` to write; it appears when it is whole and was read back, or not at all.
        overwrite: replace a file that is already there.

    Raises:
        PickleRefused: a pickle or picture that holds, or asks for, anything but tensors, numbers and text, or more
            than any adapter does. Nothing in it was run.
        AdapterFileDamaged: another kind of file.
        AdapterNotFound: nothing is there, or a folder without pickled weights.
        RequestError: the target cannot be written.
    """
    source, target = Path(source), Path(target)
    weights = _weights(source)
    check_file(target, overwrite)
    if target.exists() and target.samefile(weights):
        raise RequestError(f"{target} is the file to convert; give the result another name")
    try:
        flat, tensors = _read(weights)
    except Wrong as wrong:
        raise PickleRefused(f"{weights} {wrong}") from None
    except OSError as reason:
        raise AdapterNotFound(f"{weights} cannot be read: {reason.strerror or reason}") from reason
    metadata = {"format": "pt", **flat.metadata, **_config(source)}
    _write(target, tensors, metadata)
    dtypes = tuple(sorted({tensor.dtype for tensor in tensors.values()}))
    return Converted(weights, target, len(tensors), target.stat().st_size, dtypes, metadata, flat.left_out)


def _weights(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.exists():
        raise AdapterNotFound(f"{source} does not exist")
    if not source.is_dir():
        raise AdapterFileDamaged(f"{source} is not a regular file")
    found = next((source / name for name in FOLDER_PICKLES if (source / name).is_file()), None)
    if found is None:
        raise AdapterNotFound(f"{source} is a folder without {' or '.join(FOLDER_PICKLES)}")
    return found


def _config(source: Path) -> dict[str, str]:
    """The settings of a PEFT folder, as header strings that hold for whichever component the adapter is for."""
    settings = read_object(source / CONFIG_FILE, AdapterFileDamaged, optional=True) if source.is_dir() else {}
    return {METADATA_KEY: json.dumps({f".{key}": value for key, value in settings.items()})} if settings else {}


def _read(path: Path) -> tuple[Flat, dict[str, Tensor]]:
    with path.open("rb") as file:
        head = file.read(64)
    read = next((reader for start, reader in READERS if head.startswith(start)), None)
    foreign = next((sentence for at, start, sentence in FOREIGN_HEADS if head[at:].startswith(start)), None)
    if foreign or read is None:
        raise AdapterFileDamaged(f"{path} {foreign or 'is neither a pickle of torch nor a picture with an embedding'}")
    flat, tensors = read(path)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if needed > MAX_GROWTH * path.stat().st_size + FREE:
        raise Wrong(f"would become {needed} bytes of tensors, more than {MAX_GROWTH} times its own size")
    return flat, tensors


def _from_torch(path: Path) -> tuple[Flat, dict[str, Tensor]]:
    file = open_torch(path)
    flat = flatten(file.tree)

    def ready(tensor: StoredTensor | Tensor) -> Tensor:
        if isinstance(tensor, Tensor):
            return tensor
        return Tensor(tensor.dtype, tensor.shape, lambda: file.view(tensor))

    return flat, {name: ready(tensor) for name, tensor in flat.tensors.items()}


def _from_png(path: Path) -> tuple[Flat, dict[str, Tensor]]:
    flat = flatten(read_png(path))
    return flat, {name: tensor for name, tensor in flat.tensors.items() if isinstance(tensor, Tensor)}


def _write(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write beside the target, read back, and move there."""
    partial = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.safetensors")
    try:
        write_tensors(partial, tensors, metadata)
        if not _reads_back(partial, tensors, metadata):
            raise RequestError(f"{target} reads otherwise than it was written; is the disk failing?")
        partial.replace(target)
    except OSError as reason:
        raise RequestError(f"{target} cannot be written: {reason.strerror or reason}") from reason
    finally:
        partial.unlink(missing_ok=True)


def _reads_back(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    written = TensorFile.open(path, RequestError)
    same = dict(written.metadata) == dict(metadata) and {*written.names} == {*tensors}
    return same and all(_same(written, name, tensor) for name, tensor in tensors.items())


def _same(written: TensorFile, name: str, tensor: Tensor) -> bool:
    """Bit for bit, so that a NaN equals itself."""
    one, other = written.view(name), np.ascontiguousarray(tensor.make()).reshape(tensor.shape)
    bits = np.dtype(f"u{one.itemsize}")
    same_type = written.dtype(name) == tensor.dtype and one.shape == other.shape
    return same_type and np.array_equal(one.view(bits), other.view(bits))


Reader: TypeAlias = Callable[[Path], tuple[Flat, dict[str, Tensor]]]
READERS: tuple[tuple[bytes, Reader], ...] = ((b"PK", _from_torch), (b"\x80", _from_torch), (SIGNATURE, _from_png))
PIXELS = "an embedding that is hidden in pixels is not read; save it as .pt or .safetensors where it works"
FOREIGN_HEADS = (
    (4, b"\0\0\0\0{", "is a safetensors file already; use it as it is"),
    (8, b"WEBP", f"is a WebP picture: {PIXELS}"),
    (4, b"ftyp", f"is an AVIF picture or a film: {PIXELS}"),
    *((0, start, sentence) for start, sentence in FOREIGN if "pickle" not in sentence),
)
