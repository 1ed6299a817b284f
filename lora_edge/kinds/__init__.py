"""Kinds: the mathematics of adapter files.

A kind is one file that declares the leaves it owns, and one line in KINDS; a modifier of other kinds is one file and
one line in MODIFIERS. Exactly one kind may claim a layer, so the order of KINDS means nothing; modifiers go around it
in the order of MODIFIERS.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import reduce

from lora_edge.errors import AmbiguousKind, UnknownKind
from lora_edge.kinds.added import ADDED
from lora_edge.kinds.bias import BIAS, UP_BIAS
from lora_edge.kinds.boft import BOFT
from lora_edge.kinds.dora import DORA
from lora_edge.kinds.full import FULL
from lora_edge.kinds.glora import GLORA
from lora_edge.kinds.ia3 import IA3, IA3_PEFT
from lora_edge.kinds.kind import Kind, Shapes, Size, Update
from lora_edge.kinds.loha import LOHA
from lora_edge.kinds.lokr import LOKR
from lora_edge.kinds.lora import LORA
from lora_edge.kinds.modifier import NOTHING, Modifier, modified
from lora_edge.kinds.norm import NORM
from lora_edge.kinds.oft import OFT

__all__ = ["KINDS", "MODIFIERS", "UNREAD", "Kind", "Modifier", "Size", "Update", "claim", "is_adapter_leaf", "split"]

KINDS: tuple[Kind, ...] = (LORA, LOHA, LOKR, IA3, IA3_PEFT, FULL, NORM, GLORA, OFT, BOFT)

MODIFIERS: tuple[Modifier, ...] = (ADDED, DORA, BIAS, UP_BIAS)

UNREAD: Mapping[str, tuple[str, ...]] = {  # known by their leaves, so that a refusal can name them
    "LoKr with a Tucker core in w1": ("lokr_t1",),
    "GLoRA with a Tucker core": ("bm.weight",),
    "OFT of PEFT": ("oft_R.weight", "oft_R.*.weight", "oft_R", "oft_R.*"),
    "BOFT of PEFT": ("boft_R", "boft_R.*", "boft_s", "boft_s.*"),
    "HRA": ("hra_u", "hra_u.*", "hra_theta", "hra_theta.*"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d", "vera_lambda_b.*", "vera_lambda_d.*"),
    "VB-LoRA": ("vblora_logits_A", "vblora_logits_B", "vblora_logits_A.*", "vblora_logits_B.*"),
    "FourierFT": ("fourierft_spectrum", "fourierft_spectrum.*"),
    "Poly": ("poly_lora_A", "poly_lora_B", "poly_lora_A.*", "poly_lora_B.*"),
    "LN tuning": ("ln_tuning_layers.weight", "ln_tuning_layers.*.weight", "ln_tuning_layers.bias"),
    "LoRA of an embedding": ("lora_embedding_A", "lora_embedding_B", "lora_embedding_A.*", "lora_embedding_B.*"),
    "a whole layer": (
        "modules_to_save.weight",
        "modules_to_save.bias",
        "modules_to_save.*.weight",
        "modules_to_save.*.bias",
        "base_layer.weight",
        "base_layer.bias",
    ),
    "a weight to set": ("set_weight", "reshape_weight"),
}

NO_SHAPES: Shapes = {}


def claim(
    leaves: Set[str],
    kinds: Sequence[Kind] = KINDS,
    modifiers: Sequence[Modifier] = MODIFIERS,
    shapes: Shapes = NO_SHAPES,
) -> Kind:
    """The one kind that the leaves of a layer belong to, with its modifiers around it.

    Args:
        leaves: what `split` made of the tensors' names.
        kinds, modifiers: to choose from.
        shapes: of the tensors by leaf, for kinds that only those tell apart.

    Raises:
        UnknownKind: no kind claims them, or the one that does would leave some unused.
        AmbiguousKind: two kinds claim them.
    """
    found = [kind for kind in kinds if kind.signature & leaves and kind.tells(shapes)]
    around = [modifier for modifier in modifiers if modifier.signature & leaves]
    if not found and any(modifier.alone for modifier in around):
        found = [NOTHING]
    owners: tuple[Kind | Modifier, ...] = (*found, *around)
    owned = {leaf for owner in owners for leaf in owner.spellings}
    unread = sorted(leaves - owned)
    if not found or unread:
        names = sorted(kind for kind, spellings in UNREAD.items() if not leaves.isdisjoint(spellings))
        what = f" ({' and '.join(names)}, which lora-edge does not read)" if names else ""
        raise UnknownKind(f"has {', '.join(unread or sorted(leaves))}, which no known kind uses{what}")
    if len(found) > 1:
        raise AmbiguousKind(f"has the leaves of {' and of '.join(kind.name for kind in found)}")
    return reduce(modified, around, found[0])


_OWNERS: tuple[Kind | Modifier, ...] = (*KINDS, *MODIFIERS)
_SIGNATURES = frozenset[str]().union(*(owner.signature for owner in _OWNERS), *UNREAD.values()) - ADDED.signature


def _spellings() -> Iterator[tuple[str, str]]:
    """(spelling, leaf) of everything known."""
    for owner in _OWNERS:
        for leaf, spellings in owner.spellings.items():
            yield from ((spelling, leaf) for spelling in spellings)
    for spellings in UNREAD.values():
        yield from ((spelling, spelling) for spelling in spellings)


_LEAVES = {tuple(spelling.split(".")): leaf for spelling, leaf in _spellings()}
_LONGEST = max(map(len, _LEAVES))
_FLAT = re.compile(r"(?:lora|oft|lycoris)_[^.]+")


def is_adapter_leaf(leaf: str) -> bool:
    """Whether a leaf, as `split` gives it, identifies some kind, read or unread."""
    return leaf in _SIGNATURES


def split(tensor: str) -> tuple[str, str]:
    """The name of a tensor -> (module name, leaf).

    The longest known spelling at the end of the name is the leaf. An unknown one begins at the first dot of a kohya
    name, at the last dot of any other.
    """
    parts = tensor.split(".")
    for length in range(min(_LONGEST, len(parts) - 1), 0, -1):
        if (leaf := _leaf(parts[-length:])) and (module := ".".join(parts[:-length])):
            return module, leaf
    module, _, leaf = tensor.partition(".") if _FLAT.fullmatch(parts[0]) else tensor.rpartition(".")
    return (module, leaf) if leaf else ("", tensor)


def _leaf(parts: Sequence[str]) -> str | None:
    """The leaf that is spelled so, with any one part for `*`."""
    exact = tuple(parts)
    stars = ((*exact[:at], "*", *exact[at + 1 :]) for at in range(1, len(exact)) if exact[at])
    return next((_LEAVES[spelling] for spelling in (exact, *stars) if spelling in _LEAVES), None)
