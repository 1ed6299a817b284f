"""Dialects: how files spell the names of slots.

Names are never taken apart: every layer of a bundle is spelled in every dialect, and the names of a file are looked
up. A dialect is one file with one function, `spell(table, path)`, and one line below.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lora_edge.dialects import attn_procs, diffusers, kohya, kohya_ldm, ldm, peft
from lora_edge.slots import SlotTable

Speller = Callable[[SlotTable, str], Iterator[str]]

DIALECTS: Mapping[str, Speller] = {
    "kohya": kohya.spell,
    "kohya-ldm": kohya_ldm.spell,
    "diffusers": diffusers.spell,
    "diffusers-attn-procs": attn_procs.spell,
    "peft": peft.spell,
    "ldm": ldm.spell,
}


@dataclass(frozen=True, order=True)
class Place:
    """A layer or norm of a bundle.

    Attributes:
        component: such as `unet`.
        path: the slot's or norm's name.
    """

    component: str
    path: str


@dataclass(frozen=True)
class Spelled:
    """What a name in a file may mean.

    Attributes:
        places: usually one; several where the name does not say the component, or where two layers flatten alike.
        dialect: the first dialect that spells it so.
    """

    places: tuple[Place, ...]
    dialect: str


def spell(tables: Sequence[SlotTable]) -> Mapping[str, Spelled]:
    """Module name in a file -> what it means, for every slot and norm of the tables in every dialect."""
    return _spelled(tuple(tables))


@lru_cache(maxsize=8)
def _spelled(tables: tuple[SlotTable, ...]) -> Mapping[str, Spelled]:
    made: dict[str, Spelled] = {}
    for table in tables:
        for path in (*table.by_name, *table.norms):
            place = Place(table.component, path)
            for dialect, speller in DIALECTS.items():
                for name in speller(table, path):
                    known = made.get(name)
                    if known is None:
                        made[name] = Spelled((place,), dialect)
                    elif place not in known.places:
                        made[name] = Spelled((*known.places, place), known.dialect)
    return made
