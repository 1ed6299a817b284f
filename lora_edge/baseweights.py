"""The frozen base, as far as adapters look at it: kinds whose change depends on the weight that they change."""

from typing import Protocol

from lora_edge.arrays import FloatArray


class BaseWeights(Protocol):
    """Weights of a base model, read one layer at a time: a bundle, or a checkpoint."""

    def weight(self, component: str, slot: str) -> FloatArray:
        """A layer's own weight, float32 in torch's layout: [out, in] or [out, in, kh, kw]."""
        ...

    def bias(self, component: str, slot: str) -> FloatArray | None:
        """A layer's own bias [out] float32, None where it has none."""
        ...
