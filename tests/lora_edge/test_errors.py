"""The drawing of the error tree is the tree, and every refusal of adapters and prompts can happen."""

import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_edge
from lora_edge import errors
from lora_edge.adapterfile import read_adapter
from lora_edge.bundle import Bundle
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.kinds import Kind, claim
from lora_edge.kinds.lora import LORA
from lora_edge.library import Library
from lora_edge.pack import KEY, read_pack
from lora_edge.prompt import parse
from lora_edge.runtime.coreml.lanes import check_rank
from lora_edge.slots import SlotTable
from lora_edge.tools.convert import convert

CLASSES = {name: found for name, found in vars(errors).items() if inspect.isclass(found)}
OTHER = Kind("other", {"thing": ("thing",)}, frozenset({"thing"}), lambda update: ())
LORA_PAIR = {
    "lora_unet_conv_in.lora_up.weight": np.ones((8, 2, 1, 1), np.float32),
    "lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3), np.float32),
}
FOUR_LANES = ComponentForms({"conv_in": (LowRank(np.ones((4, 4), np.float32), np.ones((4, 8), np.float32)),)})
OFT = {"oft_unet_conv_in.oft_blocks": np.ones((2, 4, 4), np.float32)}
HALF = {"lora_unet_conv_in.lora_up.weight": np.ones((2, 2), np.float32)}


def pickled(folder: Path) -> Path:
    """A pickle that calls a function."""
    path = folder / "x.pt"
    path.write_bytes(pickle.dumps(print, protocol=2))
    return path


def drawn() -> dict[str, str]:
    """Class -> its parent, from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    above = ["LoraEdgeError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│ ]*)[├└]── (\w+)", line):
            depth = len(found[1]) // 4 + 1
            above = [*above[:depth], found[2]]
            parents[found[2]] = above[depth - 1]
    return parents


def test_the_drawing_is_the_tree() -> None:
    assert drawn() == {name: found.__mro__[1].__name__ for name, found in CLASSES.items() if name != "LoraEdgeError"}


def test_the_root_is_public() -> None:
    assert lora_edge.LoraEdgeError is errors.LoraEdgeError
    assert all(issubclass(found, lora_edge.LoraEdgeError) for found in CLASSES.values())


Refusal = Callable[[Path, Any, list[SlotTable]], Any]
REFUSALS: dict[str, Refusal] = {
    "AdapterNotFound": lambda folder, save, tables: Library(folder).find("ink"),
    "AdapterFileDamaged": lambda folder, save, tables: read_adapter(__file__),
    "PickleRefused": lambda folder, save, tables: convert(pickled(folder), folder / "x.safetensors"),
    "AdapterValueError": lambda folder, save, tables: read_adapter(
        save({name: array * np.float32("nan") for name, array in LORA_PAIR.items()})
    ).fit(tables),
    "AdapterMismatch": lambda folder, save, tables: read_adapter(save(HALF)).fit(tables),
    "AdapterTooLarge": lambda folder, save, tables: read_adapter(save(LORA_PAIR)).fit(tables, max_bytes=100),
    "RankTooLarge": lambda folder, save, tables: check_rank("unet", [("ink", FOUR_LANES)], 2),
    "BaseNeeded": lambda folder, save, tables: read_adapter(save(OFT)).fit(tables),
    "PackMismatch": lambda folder, save, tables: read_pack(
        save(HALF, metadata={KEY: '{"format": 9}'}), Bundle(folder, {"fingerprint": ""}, {})
    ),
    "UnknownKind": lambda folder, save, tables: claim({"weight"}),
    "AmbiguousKind": lambda folder, save, tables: claim({"down", "thing"}, kinds=(LORA, OTHER)),
    "PromptError": lambda folder, save, tables: parse("<lora:"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_happens_in_a_sentence(name: str, tmp_path: Path, save: Any, unet_table: SlotTable) -> None:
    with pytest.raises(errors.LoraEdgeError) as caught:
        REFUSALS[name](tmp_path, save, [unet_table])
    assert type(caught.value).__name__ == name
    assert len(str(caught.value)) > 10


def test_every_class_of_adapters_has_a_case() -> None:
    adapters = {name for name, found in CLASSES.items() if issubclass(found, errors.AdapterError)}
    assert adapters - {"AdapterError"} <= set(REFUSALS)


def test_a_prompt_error_points_at_its_place() -> None:
    assert str(errors.PromptError("no", "an apple", 3)) == "no\n  an apple\n     ^"
