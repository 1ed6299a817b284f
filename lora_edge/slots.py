"""Slots: the layers of a component that take an update, and their names in the graph.

The graph contract (ABI 1) is spelled here and nowhere else: which inputs a slot has and what they are called.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

ABI_VERSION = 1

Placement = Literal["activation", "weight"]

SCALES = "lora.scales"
RANKS = "lora.ranks"
TOKENS = "lora.tokens"
HELD = "held."
"""What the inputs are called that a part of a graph takes from earlier ones (see `lora_edge.parts`)."""


@dataclass(frozen=True)
class Slot:
    """One Linear or Conv layer that takes an update.

    Attributes:
        name: module path in diffusers, `down_blocks.0.attentions.0.proj_in`; text encoders of every transformers
            version are named with the leading `text_model.`.
        in_features: input features of a Linear, input channels of a Conv.
        out_features: output features or channels.
        kernel: (kh, kw) of a Conv, None for a Linear.
        placement: where the graph computes the update (runtime results do not depend on it).
        has_bias: whether the layer has a bias of its own.
    """

    name: str
    in_features: int
    out_features: int
    kernel: tuple[int, int] | None = None
    placement: Placement = "activation"
    has_bias: bool = True

    @property
    def patch(self) -> int:
        """Rows of `down`: in, or in * kh * kw for a Conv."""
        kh, kw = self.kernel or (1, 1)
        return self.in_features * kh * kw

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the layer's weight in torch: [out, in] or [out, in, kh, kw]."""
        return (self.out_features, self.in_features, *(self.kernel or ()))

    @property
    def axes(self) -> dict[str, tuple[int | str, ...]]:
        """Leaf -> shape of its graph input; axes that are words are free, a gain has one number or one a feature."""
        rank = f"rank.{self.name}"
        return {
            "down": (self.patch, rank),
            "up": (rank, self.out_features),
            "gain_in": (f"gain_in.{self.name}",),
            "gain_out": (f"gain_out.{self.name}",),
            "bias": (self.out_features,),
        }

    def port(self, leaf: str) -> str:
        """Name of a graph input of this slot; leaf is down, up, gain_in, gain_out or bias."""
        return f"lora.{self.name}.{leaf}"

    def to_json(self) -> dict[str, Any]:
        """The slot as the manifest writes it."""
        return {
            "name": self.name,
            "in": self.in_features,
            "out": self.out_features,
            "kernel": list(self.kernel) if self.kernel else None,
            "placement": self.placement,
            "bias": self.has_bias,
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> "Slot":
        """The inverse of `to_json`."""
        kernel = item["kernel"]
        return cls(
            str(item["name"]),
            int(item["in"]),
            int(item["out"]),
            (int(kernel[0]), int(kernel[1])) if kernel else None,
            item["placement"],
            bool(item["bias"]),
        )


@dataclass(frozen=True)
class SlotTable:
    """All slots of one component, in the order in which `lora.scales` lays out their lanes.

    Attributes:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        slots: in graph order.
        norms: module path -> channels of the norms whose `.weight` and `.bias` are overridable inputs.
        facts: what dialects need to know of the architecture: `layers_per_block` and `levels` of a UNet,
            `cross_attention_dim`; empty where unknown.
    """

    component: str
    slots: tuple[Slot, ...]
    norms: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Slot]:
        return {slot.name: slot for slot in self.slots}

    def __hash__(self) -> int:
        """Cheap, so that what is made of a table can be kept by it; equal tables have equal ones."""
        return hash((self.component, len(self.slots)))

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)
