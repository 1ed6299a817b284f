"""Right tensors under wrong names."""

from collections.abc import Callable, Mapping
from random import Random

import numpy as np

from lora_edge.kinds import KINDS, MODIFIERS, UNREAD

from ..kinds_graph.naming import NAMINGS
from .draft import Draft
from .world import TABLES

SPELLINGS = (
    *(spellings for kind in KINDS for spellings in kind.spellings.values()),
    *(spellings for modifier in MODIFIERS for spellings in modifier.spellings.values()),
    *UNREAD.values(),
)
LEAVES = tuple(spelling.replace("*", "default") for spellings in SPELLINGS for spelling in spellings)
ODD = ("", ".", "..", "alpha", ".alpha", "x" * 3000, "\ud800", "a\0b", "../../x", "lora_unet_.", "bundle_emb.", "é.w")


def _rename(made: Draft, index: int, name: str) -> None:
    made.entries[index] = (name, made.entries[index][1])


def two_names_exchanged(rng: Random, made: Draft) -> bytes:
    """So that an alpha may hold a matrix, or a layer another one's factors."""
    one, other = rng.randrange(len(made.entries)), rng.randrange(len(made.entries))
    (first, _), (second, _) = made.entries[one], made.entries[other]
    _rename(made, one, second)
    _rename(made, other, first)
    return made.dump()


def another_leaf(rng: Random, made: Draft) -> bytes:
    index = rng.randrange(len(made.entries))
    module, _ = _split(made.entries[index][0])
    _rename(made, index, f"{module}.{rng.choice(LEAVES)}")
    return made.dump()


def another_module(rng: Random, made: Draft) -> bytes:
    """The name of some other layer of the model, in any naming, or of none."""
    module, _ = _split(made.entries[rng.randrange(len(made.entries))][0])
    other = rng.choice((_somewhere(rng), module + "_x", module[:-1], module.upper(), "lora_unet_nothing", ""))
    for index, (name, _) in enumerate(made.entries):
        if name.startswith(module + "."):
            _rename(made, index, other + name[len(module) :])
    return made.dump()


def one_layer_in_two_namings(rng: Random, made: Draft) -> bytes:
    """Every tensor of a layer once more, under the name that another trainer gives the layer."""
    path = next(iter(TABLES[0].by_name))
    for name, item in list(made.entries):
        module, leaf = _split(name)
        for naming in rng.sample(list(NAMINGS.values()), 3):
            for other in TABLES[0].by_name:
                if naming.module("unet", other) == module:
                    path = other
        part = slice(*item["data_offsets"])
        twin = rng.choice(list(NAMINGS.values())).module("unet", path)
        start = len(made.data)
        made.data += made.data[part]
        offsets = [start, start + part.stop - part.start]
        made.entries.append((f"{twin}.{leaf}", {**item, "data_offsets": offsets}))
        if rng.random() < 0.5:
            break
    return made.dump()


def leaves_of_two_kinds(rng: Random, made: Draft) -> bytes:
    module, _ = _split(made.entries[rng.randrange(len(made.entries))][0])
    for leaf in rng.sample(LEAVES, rng.choice((1, 1, 2, 4))):
        shape = rng.choice(((8,), (8, 8), (1,), (), (2, 8), (8, 2), (2, 4, 4), (8, 1), (8, 8, 3, 3)))
        made.add(f"{module}.{leaf}", rng.choice(("F32", "F16")), np.full(shape, 0.5))
    return made.dump()


def tensors_missing(rng: Random, made: Draft) -> bytes:
    for index in sorted(rng.sample(range(len(made.entries)), rng.choice((1, 1, len(made.entries) // 2))), reverse=True):
        made.put(index, made.entries[index][1]["dtype"], [0], b"")
        del made.entries[index]
    return made.dump()


def odd_names(rng: Random, made: Draft) -> bytes:
    index = rng.randrange(len(made.entries))
    odd = rng.choice(ODD)
    _rename(made, index, rng.choice((odd, f"{odd}.lora_down.weight", made.entries[index][0] + odd)))
    return made.dump()


def many_tensors(rng: Random, made: Draft) -> bytes:
    """Names of nothing, each with a tensor of no numbers."""
    end = len(made.data)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    leaf = rng.choice(("lora_down.weight", "alpha", "nothing", "emb_params"))
    start = rng.choice(("m", "lora_unet_", "bundle_emb."))
    made.entries += [(f"{start}{index}.{leaf}", empty) for index in range(rng.choice((50, 1000)))]
    return made.dump()


def words_that_come_with_it(rng: Random, made: Draft) -> bytes:
    key = rng.choice(("emb_params", "clip_l", "clip_g", "string_to_param.*", "string_to_token.*", "", "a.b.c", "*"))
    shape = rng.choice(((2, 16), (16,), (0, 16), (2, 0), (), (2, 3, 16), (2000, 4), (2, 17), (1, 1)))
    array = np.full(shape, rng.choice((0.5, float("nan"))))
    word = rng.choice(("cat", "", " ", "a\nb", "x" * 999))
    made.add(f"bundle_emb.{word}.{key}", rng.choice(("F32", "I64")), array)
    return made.dump()


def _somewhere(rng: Random) -> str:
    table = rng.choice(TABLES)
    path = rng.choice((*table.by_name, *table.norms))
    return rng.choice(list(NAMINGS.values())).module(table.component, path) or path


def _split(name: str) -> tuple[str, str]:
    for leaf in LEAVES:
        if name.endswith(f".{leaf}"):
            return name[: -len(leaf) - 1], leaf
    module, _, leaf = name.rpartition(".")
    return module, leaf


MUTATIONS: Mapping[str, Callable[[Random, Draft], bytes]] = {
    made.__name__.replace("_", " "): made
    for made in (
        two_names_exchanged,
        another_leaf,
        another_module,
        one_layer_in_two_namings,
        leaves_of_two_kinds,
        tensors_missing,
        odd_names,
        many_tensors,
        words_that_come_with_it,
    )
}
