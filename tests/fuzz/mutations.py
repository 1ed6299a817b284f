"""Every way in which a file is made hostile: name -> (random, seed) -> the file; the same seed gives the same bytes."""

from collections.abc import Callable, Mapping
from random import Random

from . import bytewise, headers, names, settings, values
from .draft import Draft
from .seeds import Seed

Bytewise = Callable[[Random, bytes], bytes]
Structural = Callable[[Random, Draft], bytes]

OF_BYTES: Mapping[str, Bytewise] = bytewise.MUTATIONS
OF_STRUCTURE: Mapping[str, Structural] = {**headers.MUTATIONS, **values.MUTATIONS, **names.MUTATIONS}
NAMES: tuple[str, ...] = (*OF_BYTES, *OF_STRUCTURE, *settings.MUTATIONS, *settings.OF_PACKS)


def suits(mutation: str, seed: Seed) -> bool:
    """Whether a mutation can be made of a seed."""
    if mutation in settings.MUTATIONS:
        return seed.form in ("file", "folder")
    if mutation in settings.OF_PACKS:
        return seed.form == "pack"
    return mutation in OF_BYTES or seed.draft is not None


def mutate(mutation: str, rng: Random, seed: Seed) -> tuple[bytes, bytes | None]:
    """(the file, its adapter_config.json or None)."""
    kept = seed.draft.settings.encode() if seed.draft and seed.draft.settings is not None else None
    if mutation in OF_BYTES:
        return OF_BYTES[mutation](rng, seed.blob), kept
    assert seed.draft is not None
    made = seed.draft.copy()
    if mutation in settings.MUTATIONS:
        text = settings.MUTATIONS[mutation](rng, seed.form == "folder")
        if seed.form == "folder":
            return seed.blob, text
        made.metadata = {**(made.metadata or {}), "lora_adapter_metadata": text.decode("utf-8", "replace")}
        return made.dump(), None
    if mutation in settings.OF_PACKS:
        return settings.OF_PACKS[mutation](rng, made), kept
    return OF_STRUCTURE[mutation](rng, made), kept
