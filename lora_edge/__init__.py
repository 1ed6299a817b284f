"""lora-edge: Stable Diffusion compiled once, with LoRA adapters as inputs of the graph.

    import lora_edge
    engine = lora_edge.Engine.open("bundle")
    image = engine.generate("a red apple <lora:ink:0.8>", lora_dir="styles", seed=7)[0]

The names below are the whole public interface; each is looked up on first use, so that importing the package costs
nothing and needs neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_edge.adapter import Adapter
    from lora_edge.adapterfile import read_adapter
    from lora_edge.errors import LoraEdgeError
    from lora_edge.multiplier import Multiplier
    from lora_edge.runtime.engine import Engine

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "lora_edge.adapter",
    "Engine": "lora_edge.runtime.engine",
    "LoraEdgeError": "lora_edge.errors",
    "Multiplier": "lora_edge.multiplier",
    "read_adapter": "lora_edge.adapterfile",
}

__all__ = ["Adapter", "Engine", "LoraEdgeError", "Multiplier", "export", "read_adapter"]


def __getattr__(name: str) -> Any:
    if name == "export":  # the room is callable: lora_edge.export("model", "bundle")
        return import_module("lora_edge.export")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lora_edge' has no attribute {name!r}")
