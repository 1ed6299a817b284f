"""What a pack says of itself: the JSON under `lora_edge_pack` among its header strings (docs/packs.md)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_edge.ports import Runs, short

KEY = "lora_edge_pack"
FORMAT = 1
READABLE_FORMATS = (1,)

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Source:
    """The bundle that a pack was written for: its fingerprint decides, family and name are for people."""

    fingerprint: str
    family: str
    name: str


@dataclass(frozen=True)
class Part:
    """What a pack changes in one component.

    Attributes:
        prefix: what stands before its graph inputs in the names of the tensors.
        runs: slot -> (lanes, base scale) in lane order, of every slot that has lanes, in the order of the slot table.
    """

    prefix: str
    runs: Mapping[str, Runs]


@dataclass(frozen=True)
class Head:
    """A pack's description.

    Attributes:
        format, abi: versions of this format and of the graph contract.
        source: the bundle.
        name, kinds: of the adapter.
        dtype: "fp16" or "fp32", of down and up.
        parts: by component.
    """

    format: int
    abi: int
    source: Source
    name: str
    kinds: tuple[str, ...]
    dtype: str
    parts: Mapping[str, Part]

    def dump(self) -> str:
        """As a pack holds it; equal heads give equal text."""
        components = {
            component: {
                "prefix": part.prefix,
                "slots": [
                    {"name": name, "rank": sum(lanes for lanes, _ in runs), "scales": [list(run) for run in runs]}
                    for name, runs in part.runs.items()
                ],
            }
            for component, part in self.parts.items()
        }
        bundle = {"fingerprint": self.source.fingerprint, "family": self.source.family, "name": self.source.name}
        about = {
            "format": self.format,
            "abi": self.abi,
            "bundle": bundle,
            "adapter": {"name": self.name, "kinds": list(self.kinds)},
            "dtype": self.dtype,
            "components": components,
        }
        return json.dumps(about, sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, about: Mapping[str, Any]) -> "Head":
        """The inverse of `dump`, for what a stranger may have written.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it is something else.
        """
        bundle, adapter = about["bundle"], about["adapter"]
        return cls(
            format=int(about["format"]),
            abi=int(about["abi"]),
            source=Source(_text(bundle["fingerprint"]), _text(bundle["family"]), _text(bundle["name"])),
            name=_text(adapter["name"]),
            kinds=tuple(map(_text, _list(adapter["kinds"]))),
            dtype=_text(about["dtype"]),
            parts={component: _part(item) for component, item in about["components"].items()},
        )


def _part(item: Mapping[str, Any]) -> Part:
    slots = _list(item["slots"])
    runs = {_text(slot["name"]): _runs(slot) for slot in slots}
    if len(runs) < len(slots):
        raise ValueError("a slot is listed twice")
    return Part(_text(item["prefix"]), runs)


def _runs(slot: Mapping[str, Any]) -> Runs:
    runs = tuple((_lanes(lanes), _scale(scale)) for lanes, scale in _list(slot["scales"]))
    if not runs or sum(lanes for lanes, _ in runs) != slot["rank"]:
        raise ValueError(f"the scales of {short(slot['name'])} are not of its rank")
    return runs


def _lanes(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"no number of lanes is {short(value)}")
    return value


def _scale(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:
        raise ValueError(f"no scale is {short(value)}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text is {short(value)}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"no list is {short(value)}")
    return value


def utf8(text: str) -> str:
    """JSON may have said half a surrogate pair, which no UTF-8 can say again."""
    return text.encode("utf-8", "replace").decode()
