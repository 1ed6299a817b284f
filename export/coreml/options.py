"""What a Core ML export may be asked for."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lora_edge.errors import ExportError

Rank = Literal[16, 32, 64]
System = Literal["iOS16", "iOS17", "iOS18"]
Precision = Literal["fp16", "fp32"]
Attention = Literal["original", "split-einsum"]
Bits = Literal[6, 4]
Chunks = Literal[1, 2]


@dataclass(frozen=True)
class Options:
    """Settings of a Core ML export.

    Attributes:
        rank: lanes of every slot; the ranks of all adapters of a request together.
        os: oldest system that runs the packages; macOS of the same year likewise.
        precision: of weights, inputs and arithmetic; `timestep` and what is made of it stay fp32 until sine and cosine.
        attention: `original` keeps the checkpoint's layout (GPU), `split-einsum` is the Neural Engine's.
        palettize: bits of an index into a table of weights per layer of the UNet, None for plain weights.
        chunks: packages that the UNet is cut into.
        conv_slots: whether convolutions larger than 1x1 take adapters too.

    Raises:
        ExportError: a setting that is none of the above.
    """

    rank: Rank = 32
    os: System = "iOS17"
    precision: Precision = "fp16"
    attention: Attention = "original"
    palettize: Bits | None = None
    chunks: Chunks = 1
    conv_slots: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, known = getattr(self, setting.name), _CHOICES.get(setting.name)
            if known and value not in known:
                words = ", ".join(str(choice) for choice in known if choice is not None)
                raise ExportError(f"Core ML packages cannot be made with {setting.name}={value!r}; choose {words}")


_CHOICES: dict[str, tuple[Any, ...]] = {
    "rank": get_args(Rank),
    "os": get_args(System),
    "precision": get_args(Precision),
    "attention": get_args(Attention),
    "palettize": (None, *get_args(Bits)),
    "chunks": get_args(Chunks),
}
