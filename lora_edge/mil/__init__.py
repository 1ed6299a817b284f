"""Core ML packages (`.mlpackage`) read, checked and evaluated on any machine, with numpy alone.

A package is Manifest.json, a protobuf (Apple's Model.proto, which holds a program in MIL, the Model Intermediate
Language) and a file of weights. `Package.open` reads one, `Package.run` evaluates it, `check` compares a folder of
packages with the manifest that was written with them. Nothing here needs a Mac, and nothing here is Core ML: what an
accelerator does inside its kernels (accumulating in half precision, fusing operations) is not reproduced.
"""

from lora_edge.mil.check import check
from lora_edge.mil.package import Package
from lora_edge.mil.ports import Port

__all__ = ["Package", "Port", "check"]
