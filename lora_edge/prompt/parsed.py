"""What a prompt is made of once it is parsed."""

from collections.abc import Callable
from dataclasses import dataclass

from lora_edge.errors import PromptError
from lora_edge.multiplier import Multiplier

Refuse = Callable[[str, int], PromptError]
"""Makes the error for a message and a place in the text that the caller of the reader handed over."""

MAX_DEPTH = 100
"""How many brackets may be open at once. Brackets that are never closed stay open to the end."""


@dataclass(frozen=True)
class AdapterCall:
    """One tag.

    Attributes:
        name: as written in the tag; a file's stem or alias.
        multiplier: of text encoders and UNet.
        at: offset in characters of the tag in the prompt.
    """

    name: str
    multiplier: Multiplier
    at: int


@dataclass(frozen=True)
class Span:
    """Text of one emphasis.

    Attributes:
        text: what is tokenized, by itself.
        weight: 1 without emphasis.
    """

    text: str
    weight: float


@dataclass(frozen=True)
class Part:
    """One part of a composition with AND.

    Attributes:
        chunks: groups of spans, one ended by each BREAK; a group may be longer than a chunk of 75 tokens, and the first
            or one between two BREAKs may be empty.
        weight: of the part in `uncond + guidance * sum of weight_i * (cond_i - uncond)`.
    """

    chunks: tuple[tuple[Span, ...], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """Sampling steps in which the prompt says the same.

    Attributes:
        until: the last of them, counted from 1.
        parts: of the composition, in order; at least one.
        calls: the tags that act, in order.
    """

    until: int
    parts: tuple[Part, ...]
    calls: tuple[AdapterCall, ...] = ()
