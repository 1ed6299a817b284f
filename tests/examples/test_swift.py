"""The Swift package: its sources parse, its vectors are current and say what the contract says, its own tests run.

Parsing finds no wrong name of Core ML's; where a Swift toolchain is at hand, `swift test` runs all but Core ML's part.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import tree_sitter
import tree_sitter_swift

from lora_edge.forms import ComponentForms, LowRank
from lora_edge.packhead import KEY, Head
from lora_edge.runtime.coreml.lanes import Bucket
from lora_edge.runtime.coreml.manifest import DTYPES, Packaged, Pair, Port, Stage
from lora_edge.slots import Slot, SlotTable
from lora_edge.tensorfile import TensorFile

ROOT = Path(__file__).parents[2]
SWIFT = ROOT / "examples" / "swift"
VECTORS = SWIFT / "Tests" / "LoRAEdgeKitTests" / "Resources" / "Vectors"
SOURCES = sorted(path for path in SWIFT.rglob("*.swift") if ".build" not in path.parts)


@pytest.fixture(scope="module")
def swift_vectors() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parent))
    import swift_vectors

    sys.path.pop(0)
    yield swift_vectors


def faults(source: bytes) -> list[str]:
    """Lines that the grammar cannot read, or that end the app where a value is missing."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    found, left = [], [parser.parse(source).root_node]
    while left:
        node = left.pop()
        forced = node.type == "bang" and node.parent.type == "postfix_expression"
        if node.is_error or node.is_missing or forced:
            found.append(f"line {node.start_point.row + 1}: {node.text[:60]!r}")
        left += node.children
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_parses_is_short_and_never_forces(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not faults(text.encode())
    assert len(text.splitlines()) <= 300
    assert not [word for word in ("try!", "as!", "fatalError") if word in text]


@pytest.mark.parametrize("page", [SWIFT / "PATCH.md", ROOT / "docs" / "coreml.md"], ids=lambda path: path.name)
def test_what_the_pages_show_parses(page: Path) -> None:
    blocks = re.findall(r"```swift\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    assert not [fault for block in blocks for fault in faults(block.encode())]


@pytest.mark.parametrize(
    "broken", ["func f( {", "struct S { let a: Int", "let x = if {", "guard let y = z els { return }", "let a = b!.c"]
)
def test_what_is_wrong_is_found(broken: str) -> None:
    assert faults(broken.encode())


def test_vectors_are_current(swift_vectors: ModuleType) -> None:
    """`python tests/examples/swift_vectors.py examples/swift/Tests/LoRAEdgeKitTests/Resources/Vectors` writes them."""
    wanted = swift_vectors.files()
    assert {path.relative_to(VECTORS).as_posix() for path in VECTORS.rglob("*") if path.is_file()} == set(wanted)
    for path, data in wanted.items():
        assert (VECTORS / path).read_bytes() == data, path


def test_vectors_are_packs(swift_vectors: ModuleType) -> None:
    """Read by lora-edge, their descriptions come out as they went in."""
    for name in swift_vectors.PACKS:
        file = TensorFile.open(VECTORS / f"{name}.pack.safetensors")
        text = file.metadata[KEY]
        assert json.loads(Head.parse(json.loads(text)).dump()) == json.loads(text)


def change(down: Any, up: Any, scale: Any, x: torch.Tensor) -> torch.Tensor:
    """What a package computes of its inputs, in float64: two products or two convolutions."""
    down, up, scale = (torch.from_numpy(np.asarray(array, np.float64)) for array in (down, up, scale))
    if down.ndim == 2:
        return ((x @ down) * scale) @ up
    lanes = torch.nn.functional.conv2d(x, down, padding="same")
    return torch.nn.functional.conv2d(lanes * scale[:, None, None], up)


@pytest.mark.parametrize("case", ["one", "two", "two_turned", "text"])
def test_expected_arrays_make_the_change_that_the_packs_make(swift_vectors: ModuleType, case: str) -> None:
    packs, component, multipliers = swift_vectors.CASES[case]
    arrays = swift_vectors.expected(packs, component, multipliers)
    for name, slot in swift_vectors.SLOTS[component].items():
        inputs, outputs, kernel, _ = slot
        torch.manual_seed(0)
        x = torch.randn(2, inputs, 4, 4, dtype=torch.float64) if kernel else torch.randn(2, inputs, dtype=torch.float64)
        wanted = torch.zeros(2, outputs, *([4, 4] if kernel else []), dtype=torch.float64)
        for pack, multiplier in zip(packs, multipliers, strict=True):
            runs = swift_vectors.PACKS[pack][1].get(component, {}).get(name, [])
            if not runs:
                continue
            tensors, prefix = swift_vectors.factors(pack), swift_vectors.PREFIX[component]
            down, up = (tensors[f"{prefix}lora.{name}.{leaf}"].astype(np.float64) for leaf in ("down", "up"))
            base = [scale for lanes, scale in runs for _ in range(lanes)]
            weight = torch.from_numpy((up.T * base @ down.T) * multiplier)  # [out, in] of the dense change
            if kernel:
                dense = weight.reshape(outputs, inputs, *kernel)
                wanted += torch.nn.functional.conv2d(x, dense, padding="same")
            else:
                wanted += x @ weight.T
        names = [swift_vectors.input_name(name, leaf) for leaf in ("down", "up")]
        if names[0] not in arrays:
            assert not wanted.any()
            continue
        made = change(*(arrays[key] for key in names), arrays["lora_scale"], x)
        limit = 1e-5 if swift_vectors.DTYPE[component] == "fp32" else 5e-3
        torch.testing.assert_close(made, wanted, rtol=0, atol=limit * float(wanted.abs().max() or 1))


@pytest.mark.parametrize("case", ["one", "two", "two_turned", "text"])
def test_the_runtime_lays_them_the_same(swift_vectors: ModuleType, case: str) -> None:
    """Swift and Python feed a package the same bytes."""
    packs, component, multipliers = swift_vectors.CASES[case]
    slots, told = swift_vectors.SLOTS[component], swift_vectors.manifest()["components"][component]
    ports = {
        entry["name"]: Port(entry["name"], tuple(entry["shape"]), DTYPES[entry["dtype"]], True)
        for package in told["ports"].values()
        for entry in package["inputs"]
    }
    pairs = {
        name: Pair(pair["down"], pair["up"], tuple(pair["down_shape"]), tuple(pair["up_shape"]))
        for name, pair in told["slots"].items()
    }
    table = SlotTable(component, tuple(Slot(name, slot[0], slot[1], slot[2]) for name, slot in slots.items()))
    parts = [(pack, forms(swift_vectors, pack, component)) for pack in packs]
    packaged = Packaged((Stage(Path(), ports, {}),), pairs, "lora_scale")
    bucket = Bucket(packaged, table, parts, swift_vectors.RANK)
    made = bucket.resting | bucket.moving(np.array([[[m] for m in multipliers]], np.float32))
    wanted = swift_vectors.expected(packs, component, multipliers)
    assert made.keys() == wanted.keys()
    for name, array in wanted.items():
        assert made[name].dtype == array.dtype and made[name].tobytes() == array.tobytes(), name


def forms(swift_vectors: ModuleType, pack: str, component: str) -> ComponentForms:
    tensors, prefix = swift_vectors.factors(pack), swift_vectors.PREFIX[component]
    made: dict[str, tuple[LowRank, ...]] = {}
    for name, runs in swift_vectors.PACKS[pack][1].get(component, {}).items():
        down, up = (tensors[f"{prefix}lora.{name}.{leaf}"].astype(np.float32) for leaf in ("down", "up"))
        cuts = np.cumsum([0, *(lanes for lanes, _ in runs)])
        made[name] = tuple(
            LowRank(down[:, start:end], up[start:end], scale)
            for start, end, (_, scale) in zip(cuts, cuts[1:], runs, strict=False)
        )
    return ComponentForms(made)


@pytest.mark.skipif(not shutil.which("swift"), reason="no Swift toolchain on this machine")
def test_swift_test(tmp_path: Path) -> None:
    command = ["swift", "test", "--package-path", str(SWIFT), "--scratch-path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
