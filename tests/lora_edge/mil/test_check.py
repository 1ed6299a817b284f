"""A saved package with a fault: found, and its place named, by `check` and by `lora-edge verify`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lora_edge.cli import app
from lora_edge.errors import BundleDamaged, BundleNotFound, BundleVersionError, LoraEdgeError
from lora_edge.mil import Package, check

from .faults import FAULTS, MANIFEST, block, edit, lose_optional, manifest


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_place_is_named(saved: Path, name: str) -> None:
    make, sentence = FAULTS[name]
    check(saved)
    make(saved)
    with pytest.raises(BundleDamaged) as refused:
        check(saved)
    assert sentence in str(refused.value)
    made = CliRunner().invoke(app, ["verify", str(saved)])
    assert made.exit_code == 1 and sentence in str(made.exception)


def test_a_folder_is_checked_and_evaluated(saved: Path) -> None:
    made = CliRunner().invoke(app, ["verify", str(saved), "--json"])
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)["packages"]
    assert [(item["inputs"], item["optional"], item["outputs"]) for item in told] == [(5, 3, ["noise_pred"])]
    assert "evaluated with zeros" in CliRunner().invoke(app, ["verify", str(saved)]).stdout


def test_a_package_is_compared_with_the_manifest_beside_it(saved: Path, packages: dict[str, Path]) -> None:
    beside = CliRunner().invoke(app, ["verify", str(saved / "Unet.mlpackage")])
    assert beside.exit_code == 0 and "as it was exported" in beside.stdout and "5 inputs" in beside.stdout
    alone = CliRunner().invoke(app, ["verify", str(packages["fp32"])])
    assert alone.exit_code == 0 and "no lora_edge_coreml.json beside it" in alone.stdout
    edit(saved, lose_optional)
    assert CliRunner().invoke(app, ["verify", str(saved / "Unet.mlpackage")]).exit_code != 0


def test_numbers_that_are_not_finite_are_told(saved: Path) -> None:
    def overflow(model: Any) -> None:
        made = next(op for op in block(model).operations if op.outputs[0].name.startswith("const_") and
                    op.attributes["val"].immediateValue.tensor.bytes.values)  # fmt: skip
        made.attributes["val"].immediateValue.tensor.bytes.values = np.float16(np.nan).tobytes()

    edit(saved, overflow)
    (saved / MANIFEST).unlink()
    made = CliRunner().invoke(app, ["verify", str(saved / "Unet.mlpackage")])
    assert made.exit_code != 0 and "noise_pred is not finite" in str(made.exception)


def test_in_a_bundle_the_place_is_named_before_the_file(saved: Path) -> None:
    edit(saved, lose_optional)
    made = CliRunner().invoke(app, ["verify", str(saved.parent)])
    assert "the input block_down is no longer optional" in str(made.exception)


@pytest.mark.parametrize("word", ["format", "abi"])
def test_another_version_is_refused(saved: Path, word: str) -> None:
    manifest(lambda told: told.update({word: 99}))(saved)
    with pytest.raises(BundleVersionError, match=f"was written with {word} 99"):
        check(saved)


def places(told: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a manifest, down to four levels and the first two of a list or an object."""
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in list(items)[:2] if len(path) > 1 else items:
        yield (*path, key)
        if len(path) < 4:
            yield from places(value, (*path, key))


def test_a_manifest_of_any_form_is_refused_in_a_sentence(saved: Path) -> None:
    told = json.loads((saved / MANIFEST).read_text(encoding="utf-8"))
    tried = 0
    for path in places(told):
        for junk in (None, "../x", "x" * 5000, {"a\0b": {}}):
            changed = json.loads(json.dumps(told))
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = junk
            (saved / MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
            with contextlib.suppress(LoraEdgeError):
                check(saved)
            tried += 1
    assert tried > 100


def test_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="has no lora_edge_coreml.json"):
        check(tmp_path)


def test_maps_in_another_order_are_no_change(saved: Path) -> None:
    """A protobuf may write them in any order."""

    def reorder(model: Any) -> None:
        for op in block(model).operations:
            for field in (op.inputs, op.attributes):
                held = {key: type(value).FromString(value.SerializeToString()) for key, value in field.items()}
                for key in held:
                    del field[key]
                for key in reversed(held):
                    field[key].CopyFrom(held[key])

    before = Package.open(saved / "Unet.mlpackage").digests()
    edit(saved, reorder)
    assert Package.open(saved / "Unet.mlpackage").digests() == before
