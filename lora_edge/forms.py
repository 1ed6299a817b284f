"""Forms: what every adapter kind is reduced to, and all that packs, export and runtime ever see of it.

With multiplier m, several adapters on a slot give

    W' = W * (1 + sum m (gain - 1)) + sum m * scale * (down @ up)^T,   b' = b + sum m * delta.
"""

from dataclasses import dataclass, field
from typing import Literal

from lora_edge.arrays import FloatArray


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of a weight.

    Attributes:
        down: [in, lanes] float32, for a Conv [in * kh * kw, lanes] with in slowest.
        up: [lanes, out] float32.
        scale: alpha / rank, 1.0 where the file says nothing.
    """

    down: FloatArray
    up: FloatArray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.down.shape[1])

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True)
class Gain:
    """A factor on the base weight per input or output channel; values: [in] or [out] float32, 1 changes nothing."""

    axis: Literal["in", "out"]
    values: FloatArray

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass(frozen=True)
class Bias:
    """A change of a bias; delta: [out] float32."""

    delta: FloatArray

    @property
    def nbytes(self) -> int:
        return self.delta.nbytes


Form = LowRank | Gain | Bias


@dataclass(frozen=True)
class NormDelta:
    """A change of a norm's parameters; weight, bias: [channels] float32 or None."""

    weight: FloatArray | None = None
    bias: FloatArray | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)


@dataclass(frozen=True)
class ComponentForms:
    """What one adapter changes in one component: slot name -> forms, norm name -> delta."""

    slots: dict[str, tuple[Form, ...]] = field(default_factory=dict)
    norms: dict[str, NormDelta] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        forms = [form for forms in self.slots.values() for form in forms]
        return sum(form.nbytes for form in forms) + sum(norm.nbytes for norm in self.norms.values())

    @property
    def uniform(self) -> bool:
        """Whether anything in it acts on a whole batch alike: all but lanes does."""
        return bool(self.norms) or any(not isinstance(form, LowRank) for forms in self.slots.values() for form in forms)
