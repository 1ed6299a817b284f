"""Textual inversion in a picture, as AUTOMATIC1111 writes it: a text chunk of base64 of JSON.

The JSON is what its `.pt` files hold, with `{"TORCHTENSOR": nested lists}` in place of a tensor
(stable-diffusion-webui, modules/textual_inversion/image_embedding.py). The same data is hidden in the pixels, for
pictures that lost their text; pixels are not read here.
"""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_edge.tools.pickles import Wrong, quoted
from lora_edge.tools.write import Tensor

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"sd-ti-embedding\0"
TENSOR = "TORCHTENSOR"
MAX_TEXT = 2**22  # bytes of base64; 75 vectors for SDXL take 4 MB
MAX_CHUNKS = 100_000

CHUNK = struct.Struct(">L4s")


def read_png(path: Path) -> Any:
    """The tree in a picture, its tensors as float32.

    Raises:
        Wrong: no such text in it, or one that is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        text = next((text for text in _texts(file) if text.startswith(KEYWORD)), None)
    if text is None:
        raise Wrong(
            "is a picture without the text chunk sd-ti-embedding; an embedding that is hidden in its pixels is not read"
        )
    try:
        return json.loads(base64.b64decode(text.removeprefix(KEYWORD), validate=True), object_hook=_node)
    except (ValueError, OverflowError, RecursionError, TypeError) as reason:
        raise Wrong(f"has a damaged embedding in its text: {quoted(reason)}") from None


def _texts(file: BinaryIO) -> Iterator[bytes]:
    """The tEXt chunks of a PNG (its specification, section 5.3), after a look at their checksums."""
    for _ in range(MAX_CHUNKS):
        head = file.read(CHUNK.size)
        if len(head) < CHUNK.size:
            return
        length, kind = CHUNK.unpack(head)
        if kind != b"tEXt":
            file.seek(length + 4, 1)
            continue
        if length > MAX_TEXT:
            raise Wrong(f"has a text of {length} bytes; at most {MAX_TEXT} are read")
        text, check = file.read(length), file.read(4)
        if check != zlib.crc32(kind + text).to_bytes(4, "big"):
            raise Wrong("is a damaged picture: the checksum of a text is wrong")
        yield text


def _node(item: dict[str, Any]) -> Any:
    if TENSOR not in item:
        return item
    array = np.array(item[TENSOR], np.float64)
    with np.errstate(over="ignore"):  # what becomes infinite is for the reader of embeddings to refuse
        numbers = array.astype("<f4")
    return Tensor("F32", numbers.shape, lambda: numbers)
