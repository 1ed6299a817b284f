"""`backend="auto"`: what is best here, as data. The first entry of CHOICES that suits is taken.

In float32 OpenVINO is no faster than onnxruntime, so it is chosen where half precision is asked for, which changes
images a little.
"""

import ctypes
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from lora_edge.bundle import Bundle
from lora_edge.runtime.session import providers_here

CUDA = "CUDAExecutionProvider"
CUDA_LIBRARIES = {"Linux": "libcuda.so.1", "Windows": "nvcuda.dll"}


class Machine:
    """What this machine has; tests have others."""

    system = platform.system()
    processor = platform.machine().lower()

    def has(self, package: str) -> bool:
        """Whether a Python package is installed; it is not loaded."""
        return find_spec(package) is not None

    @cached_property
    def cuda(self) -> bool:
        """Whether onnxruntime was built for CUDA, and its driver finds a device."""
        if CUDA not in providers_here() or self.system not in CUDA_LIBRARIES:
            return False
        try:
            driver, count = ctypes.CDLL(CUDA_LIBRARIES[self.system]), ctypes.c_int(0)
        except OSError:
            return False
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0

    @property
    def is_mac(self) -> bool:
        """With a processor of Apple's own, whose GPU has the memory of the processor."""
        return (self.system, self.processor) == ("Darwin", "arm64")

    @property
    def is_x86(self) -> bool:
        return self.processor in ("x86_64", "amd64")


@dataclass(frozen=True)
class Choice:
    """A backend, and when it is the best.

    Attributes:
        backend: its name.
        suits: whether the machine and the bundle have what it takes.
        why: for a person.
        precisions: what may have been asked for, None for nothing.
        settings: of `runtime.backends.Wishes`, for what the caller left open.
    """

    backend: str
    suits: Callable[[Machine, Bundle], bool]
    why: str
    precisions: tuple[str | None, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _has_graphs(bundle: Bundle, backend: str) -> bool:
    return all(component.scopes(backend) for component in bundle.components.values())


def _has_programs(bundle: Bundle) -> bool:
    return all("program" in entry for entry in bundle.manifest["components"].values())


def _has_packages(bundle: Bundle) -> bool:
    return any(path.startswith("coreml/") for path in bundle.manifest["files"])


CHOICES = (  # best first
    Choice(
        "onnxruntime",
        lambda machine, bundle: machine.cuda,
        "onnxruntime finds a GPU of NVIDIA's",
        (None, "fp32"),
        {"providers": (CUDA, "CPUExecutionProvider")},
    ),
    Choice(
        "coreml",
        lambda machine, bundle: machine.is_mac and machine.has("coremltools") and _has_packages(bundle),
        "this is a Mac, and the bundle has Core ML packages",
        (None, "fp16"),
    ),
    Choice(
        "torch",
        lambda machine, bundle: machine.is_mac and machine.has("torch") and _has_programs(bundle),
        "this is a Mac, torch is installed and the bundle has programs for it",
        (None, "fp32", "fp16", "bf16"),
        {"providers": ("mps",)},
    ),
    Choice(
        "openvino",
        lambda machine, bundle: machine.is_x86 and machine.has("openvino") and _has_graphs(bundle, "openvino"),
        "bfloat16 was asked for, and openvino is installed",
        ("bf16",),
    ),
    Choice("onnxruntime", lambda machine, bundle: True, "the CPU; name execution providers for others", (None, "fp32")),
)
LAST = CHOICES[-1]


def best(machine: Machine, bundle: Bundle, precision: str | None) -> Choice:
    """The first that suits; what no backend suits is refused by the last one.

    Args:
        precision: that was asked for, or None.
    """
    return next((one for one in CHOICES if precision in one.precisions and one.suits(machine, bundle)), LAST)
