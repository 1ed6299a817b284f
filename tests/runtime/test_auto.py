"""`backend="auto"` on machines that are made up."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lora_edge.bundle import Bundle
from lora_edge.errors import BackendUnavailable
from lora_edge.runtime.auto import CHOICES, CUDA, Machine, best
from lora_edge.runtime.backends import BACKENDS, Wishes, choose
from lora_edge.runtime.engine import Engine


@dataclass
class Made(Machine):
    """A machine with these packages."""

    system: str = "Linux"
    processor: str = "x86_64"
    packages: frozenset[str] = field(default_factory=frozenset)
    cuda: bool = False  # type: ignore[assignment]

    def has(self, package: str) -> bool:
        return package in self.packages


EVERY = frozenset({"torch", "coremltools", "openvino"})
LINUX, MAC = Made(packages=EVERY), Made("Darwin", "arm64", EVERY)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    """With graphs for onnxruntime and openvino, and programs for torch."""
    return Bundle.open(tiny_bundle)


def without(bundle: Bundle, backend: str) -> Bundle:
    kept = {
        name: replace(part, graphs={key: value for key, value in part.graphs.items() if key != backend})
        for name, part in bundle.components.items()
    }
    return replace(bundle, components=kept)


def with_packages(bundle: Bundle) -> Bundle:
    return replace(bundle, manifest={**bundle.manifest, "files": {"coreml/Unet.mlmodelc/model.mil": {}}})


@pytest.mark.parametrize(
    ("machine", "precision", "backend"),
    [
        (LINUX, None, "onnxruntime"),
        (LINUX, "fp32", "onnxruntime"),
        (LINUX, "bf16", "openvino"),
        (replace(LINUX, processor="aarch64"), "bf16", "onnxruntime"),
        (replace(LINUX, packages=frozenset()), "bf16", "onnxruntime"),
        (replace(LINUX, system="Windows", processor="amd64"), "bf16", "openvino"),
        (replace(LINUX, cuda=True), None, "onnxruntime"),
        (replace(LINUX, cuda=True), "bf16", "openvino"),
        (MAC, None, "torch"),
        (MAC, "fp16", "torch"),
        (replace(MAC, packages=frozenset()), None, "onnxruntime"),
        (replace(MAC, processor="x86_64"), None, "onnxruntime"),
    ],
)
def test_best(bundle: Bundle, machine: Made, precision: str | None, backend: str) -> None:
    assert best(machine, bundle, precision).backend == backend


def test_a_gpu_is_taken_first(bundle: Bundle) -> None:
    assert best(replace(LINUX, cuda=True), bundle, None).settings["providers"][0] == CUDA
    assert not best(LINUX, bundle, None).settings


def test_core_ml_packages_come_before_torch(bundle: Bundle) -> None:
    packaged = with_packages(bundle)
    assert best(MAC, packaged, None).backend == "coreml"
    assert best(replace(MAC, packages=frozenset({"torch"})), packaged, None).backend == "torch"
    assert best(MAC, packaged, "fp32").backend == "torch"
    assert best(LINUX, packaged, None).backend == "onnxruntime"


def test_a_bundle_without_the_graphs(bundle: Bundle) -> None:
    assert best(LINUX, without(bundle, "openvino"), "bf16").backend == "onnxruntime"
    entries = {
        name: {key: value for key, value in entry.items() if key != "program"}
        for name, entry in bundle.manifest["components"].items()
    }
    assert best(MAC, replace(bundle, manifest={**bundle.manifest, "components": entries}), None).backend != "torch"


def test_every_choice_is_a_backend_and_the_last_one_suits_everywhere(bundle: Bundle) -> None:
    assert {one.backend for one in CHOICES} <= BACKENDS.keys()
    assert CHOICES[-1].suits(Made("Plan9", "mips"), without(bundle, "openvino"))


def test_what_no_backend_computes_in_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match="fp32, and not in bf16"):
        choose("auto", bundle, Wishes(precision="bf16"), replace(LINUX, packages=frozenset()))


def test_providers_that_are_named_are_those_of_onnxruntime(bundle: Bundle) -> None:
    chosen = choose("auto", bundle, Wishes(["CPUExecutionProvider"]), replace(LINUX, cuda=True))
    assert (chosen.name, chosen.providers) == ("onnxruntime", ("CPUExecutionProvider",))
    with pytest.raises(BackendUnavailable, match="CUDA"):
        choose("auto", bundle, Wishes(), replace(LINUX, cuda=True))


def test_which_and_why(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lora_edge"):
        info = Engine.open(tiny_bundle).info
    assert info["why"] in {one.why for one in CHOICES if one.backend == info["backend"]}
    assert info["backend"] in caplog.text and info["why"] in caplog.text


def test_this_machine() -> None:
    machine = Machine()
    assert machine.has("numpy") and not machine.has("no_such_package_at_all")
    assert machine.cuda in (True, False)
