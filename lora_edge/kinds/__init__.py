"""Kinds: the mathematics of adapter files.

A kind is one file that declares the leaves it owns, and one line in KINDS; a modifier of other kinds is one file and
one line in MODIFIERS. Exactly one kind may claim a layer, so the order of the lists means nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import reduce

from lora_edge.errors import AmbiguousKind, UnknownKind
from lora_edge.kinds.kind import Kind, Update
from lora_edge.kinds.lora import LORA
from lora_edge.kinds.modifier import Modifier, modified

__all__ = ["KINDS", "MODIFIERS", "UNREAD", "Kind", "Modifier", "Update", "claim", "is_adapter_leaf", "split"]

KINDS: tuple[Kind, ...] = (LORA,)

MODIFIERS: tuple[Modifier, ...] = ()

UNREAD: Mapping[str, tuple[str, ...]] = {  # known by their leaves, so that a refusal can name them
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    "DoRA": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.*", "lora_magnitude_vector.*.weight"),
    "IA3": ("on_input", "ia3_l", "ia3_l.*"),
    "full difference": ("diff", "diff_b"),
    "norm difference": ("w_norm", "b_norm"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "OFT": ("oft_blocks", "oft_diag", "oft_R.weight", "oft_R.*.weight", "rescale"),
    "LoRA bias": ("lora_B.bias", "lora_B.*.bias"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d"),
}


def claim(leaves: Set[str], kinds: Sequence[Kind] = KINDS, modifiers: Sequence[Modifier] = MODIFIERS) -> Kind:
    """The one kind that the leaves of a layer belong to, with its modifiers around it.

    Raises:
        UnknownKind: no kind claims them, or the one that does would leave some unused.
        AmbiguousKind: two kinds claim them.
    """
    found = [kind for kind in kinds if kind.signature & leaves]
    around = [modifier for modifier in modifiers if modifier.signature & leaves]
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
_SIGNATURES = frozenset[str]().union(*(owner.signature for owner in _OWNERS), *UNREAD.values())


def _leaves() -> Iterator[tuple[str, str]]:
    """(spelling, leaf) of everything known."""
    for owner in _OWNERS:
        for leaf, spellings in owner.spellings.items():
            yield from ((spelling, leaf) for spelling in spellings)
    for spellings in UNREAD.values():
        yield from ((spelling, spelling) for spelling in spellings)


def _pattern(spelling: str) -> str:
    return re.escape(spelling).replace(r"\*", r"[^.]+")


_LEAVES = tuple((re.compile(_pattern(spelling)), leaf) for spelling, leaf in dict(_leaves()).items())
_KNOWN = re.compile(rf"(.+?)\.({'|'.join(_pattern(spelling) for spelling, _ in _leaves())})")
_OTHER = re.compile(r"((?:lora|oft|lycoris)_[^.]+)\.(.+)|(.+)\.([^.]+)")


def is_adapter_leaf(leaf: str) -> bool:
    """Whether a leaf, as `split` gives it, identifies some kind, read or unread."""
    return leaf in _SIGNATURES


def split(tensor: str) -> tuple[str, str]:
    """The name of a tensor -> (module name, leaf).

    The longest known spelling at the end of the name is the leaf. Unknown ones begin at the first dot of a kohya name,
    at the last dot of any other.
    """
    if known := _KNOWN.fullmatch(tensor):
        return known[1], next(leaf for pattern, leaf in _LEAVES if pattern.fullmatch(known[2]))
    if other := _OTHER.fullmatch(tensor):
        return (other[1], other[2]) if other[1] else (other[3], other[4])
    return "", tensor
