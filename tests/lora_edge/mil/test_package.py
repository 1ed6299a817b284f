"""Packages that coremltools wrote, evaluated against torch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.errors import BundleDamaged, BundleNotFound, GraphFailed, OperationUnknown, RequestError
from lora_edge.mil import Package, Port

from .build import program
from .conftest import DEFAULTS, PORTS, RANK, Block
from .faults import edit, lose_default, port

Feeds = dict[str, np.ndarray[Any, Any]]


def wanted(block: Block, feeds: Feeds) -> np.ndarray[Any, Any]:
    """What torch gives, defaults spelled out."""
    full = {name: np.full(PORTS[name], value, np.float32) for name, value in DEFAULTS.items()} | feeds
    with torch.no_grad():
        return block(*(torch.from_numpy(full[name]) for name in PORTS)).numpy()


def without(feeds: Feeds, *names: str) -> Feeds:
    return {name: array for name, array in feeds.items() if name not in names}


@pytest.mark.parametrize("omitted", [(), ("lora_scale",), ("block_down", "block_up", "lora_scale"), ("block_up",)])
def test_in_float32_it_is_torch(
    packages: dict[str, Path], block: Block, feeds: Feeds, omitted: tuple[str, ...]
) -> None:
    given = without(feeds, *omitted)
    made = Package.open(packages["fp32"]).run(given)["noise_pred"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted(block, given), atol=1e-5)


@pytest.mark.parametrize("name", ["fp16", "iOS18"])
@pytest.mark.parametrize("precision, bound", [("f32", 2e-3), ("f16", 1e-2)])
def test_in_half_precision_it_is_near(
    packages: dict[str, Path], block: Block, feeds: Feeds, name: str, precision: Any, bound: float
) -> None:
    package = Package.open(packages[name])
    base = without(feeds, *DEFAULTS)
    effect = np.abs(wanted(block, feeds) - wanted(block, base)).max()
    for given in (feeds, base):
        error = np.abs(package.run(given, precision)["noise_pred"] - wanted(block, given)).max()
        assert error < min(bound, 0.05 * effect)


def test_rounding_is_to_the_declared_type(packages: dict[str, Path], feeds: Feeds) -> None:
    package = Package.open(packages["fp16"])
    exact, rounded = (package.run(feeds, precision)["noise_pred"] for precision in ("f32", "f16"))
    assert np.array_equal(rounded, rounded.astype(np.float16)) and not np.array_equal(exact, exact.astype(np.float16))


def test_a_palette_of_64_is_read(packages: dict[str, Path], feeds: Feeds) -> None:
    palettized, plain = (Package.open(packages[name]) for name in ("palettized", "fp16"))
    kinds = {operation.kind for operation in palettized.program.operations}
    assert "constexpr_lut_to_dense" in kinds
    difference = palettized.run(feeds)["noise_pred"] - plain.run(feeds)["noise_pred"]
    assert 0 < np.abs(difference).max() < 0.2


def test_ports_are_those_of_the_description(packages: dict[str, Path]) -> None:
    package = Package.open(packages["fp16"])
    assert package.version == 8
    assert package.inputs["timestep"] == Port((2,), "fp32")
    assert package.inputs["block_down"] == Port((16, RANK), "fp16", optional=True, default=0.0)
    assert package.inputs["lora_scale"] == Port((RANK,), "fp16", optional=True, default=1.0)
    assert package.outputs == {"noise_pred": Port((2, 4, 8, 8), "fp32")}
    assert package.inputs["lora_scale"].to_json("lora_scale") == {
        "name": "lora_scale", "shape": [RANK], "dtype": "fp16", "optional": True, "default": 1.0,
    }  # fmt: skip


DEFAULT_FIELDS = {"intDefaultValue": -2, "floatDefaultValue": 0.5, "doubleDefaultValue": 0.25}


@pytest.mark.parametrize("field", DEFAULT_FIELDS)
def test_a_default_of_every_type_stands_for_what_is_left_out(
    packages: dict[str, Path], block: Block, feeds: Feeds, tmp_path: Path, field: str
) -> None:
    def change(model: Any) -> None:
        array = port(model, "lora_scale").multiArrayType
        array.ClearField(array.WhichOneof("defaultOptionalValue"))
        setattr(array, field, DEFAULT_FIELDS[field])

    shutil.copytree(packages["fp32"], tmp_path / "Unet.mlpackage")
    edit(tmp_path, change)
    package = Package.open(tmp_path / "Unet.mlpackage")
    assert package.inputs["lora_scale"].default == DEFAULT_FIELDS[field]
    spelled = feeds | {"lora_scale": np.full(RANK, DEFAULT_FIELDS[field], np.float32)}
    made = package.run(without(feeds, "lora_scale"))["noise_pred"]
    np.testing.assert_allclose(made, wanted(block, spelled), atol=1e-5)


def test_an_optional_input_without_a_default_is_not_guessed(
    packages: dict[str, Path], feeds: Feeds, tmp_path: Path
) -> None:
    shutil.copytree(packages["fp32"], tmp_path / "Unet.mlpackage")
    edit(tmp_path, lose_default)
    with pytest.raises(GraphFailed, match="block_up is optional and has no default"):
        Package.open(tmp_path / "Unet.mlpackage").run(without(feeds, "block_up"))


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown": (lambda feeds: feeds | {"smaple": feeds["sample"]}, "has no input smaple; it has sample, timestep"),
    "missing": (lambda feeds: without(feeds, "timestep"), "the input timestep is required; give it as fp32 [2]"),
    "shape": (lambda feeds: feeds | {"timestep": np.ones(3)}, "is fp32 [2], and float64 [3] was given"),
    "word": (lambda feeds: feeds | {"timestep": np.array(["a", "b"])}, "is fp32 [2], and <U1 [2] was given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_feeds_that_do_not_fit_are_refused(packages: dict[str, Path], feeds: Feeds, case: str) -> None:
    change, sentence = REFUSED[case]
    with pytest.raises(GraphFailed) as refused:
        Package.open(packages["fp16"]).run(change(feeds))
    assert sentence in str(refused.value)


def test_a_precision_that_is_none_is_refused(packages: dict[str, Path], feeds: Feeds) -> None:
    with pytest.raises(RequestError, match="f64, f32, f16"):
        Package.open(packages["fp16"]).run(feeds, "fp8")  # type: ignore[arg-type]


def test_constants_that_are_widened_beforehand_change_nothing(packages: dict[str, Path], feeds: Feeds) -> None:
    package = Package.open(packages["fp32"])
    beforehand = package.widened().run(feeds, "f64")
    for name, array in package.run(feeds, "f64").items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(beforehand[name], array)


def test_no_package_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="not a Core ML package"):
        Package.open(tmp_path / "Unet.mlpackage")
    with pytest.raises(BundleDamaged, match=r"lacks Manifest\.json"):
        Package.open(tmp_path)


def test_numbers_that_are_not_whole_are_no_tokens(text_package: Path) -> None:
    package = Package.open(text_package)
    np.testing.assert_array_equal(package.run({"input_ids": np.array([2.0, 0.0])})["tokens"], [[4, 5], [0, 1]])
    for odd in (0.5, np.nan, 1e30):
        with pytest.raises(GraphFailed, match="not whole"):
            package.run({"input_ids": np.array([odd, 0.0])})
    with pytest.raises(GraphFailed, match=r"\(gather\) cannot be computed: indices from 0 to 7 into 3"):
        package.run({"input_ids": np.array([7, 0])})


@pytest.fixture(scope="module")
def text_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a table by their numbers."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = tmp_path_factory.mktemp("text") / "Text.mlpackage"
    return program(
        {"tokens": lambda mb, ids: mb.gather(x=table, indices=ids, axis=0)}, {"input_ids": np.zeros(2, np.int32)}, path
    )


def test_an_operation_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "Odd.mlpackage"
    program({"y": lambda mb, x: mb.l2_norm(x=x)}, {"x": np.ones((1, 3, 2, 2), np.float32)}, path)
    with pytest.raises(OperationUnknown, match="uses l2_norm, which the evaluator does not know"):
        Package.open(path)
