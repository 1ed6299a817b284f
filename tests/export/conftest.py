"""Core ML packages of the tiny model, each made once a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_edge.bundle import Bundle
from lora_edge.export.checkpoint import Checkpoint
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.programs import Program, programs
from lora_edge.export.coreml.write import sizes_of, write
from lora_edge.slots import SlotTable


@pytest.fixture(scope="session")
def tables(tiny_bundle: Path) -> dict[str, SlotTable]:
    return {name: component.table for name, component in Bundle.open(tiny_bundle).components.items()}


@pytest.fixture(scope="session")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return Checkpoint.open(tiny_model)


@pytest.fixture(scope="session")
def unet_program(checkpoint: Checkpoint, tables: dict[str, SlotTable]) -> Callable[[Options], Program]:
    """What is traced of the tiny UNet."""
    part = next(part for part in checkpoint.parts if part.recipe.component == "unet")
    return lambda options: programs(part, tables["unet"], options, sizes_of(checkpoint))[0]


@pytest.fixture(scope="session")
def coreml_bundle(
    checkpoint: Checkpoint, tables: dict[str, SlotTable], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with `tokenizer/` and `coreml/` in half precision; tests must not write into it."""
    folder = tmp_path_factory.mktemp("coreml") / "tiny"
    folder.mkdir()
    (folder / "tokenizer").symlink_to(tiny_model / "tokenizer")
    stages: list[str] = []
    write(checkpoint, folder, tables, "f" * 64, Options(rank=16), stages.append, lambda *told: None)
    assert stages[:2] == ["Core ML TextEncoder: converting", "Core ML TextEncoder: verifying"] and len(stages) == 10
    return folder
