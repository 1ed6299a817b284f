"""The exporter: a Stable Diffusion checkpoint becomes a bundle of frozen graphs whose layers take updates as inputs.

This room alone imports torch. It is callable, since `lora_edge.export` is both the room and the function that users
know: `lora_edge.export("model", "bundle")`.
"""

import sys
from types import ModuleType
from typing import Any

from lora_edge import front


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return front.export(*args, **settings)


sys.modules[__name__].__class__ = _CallableRoom
