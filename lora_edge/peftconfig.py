"""The settings of a PEFT adapter that its tensors do not say: alpha, patterns, rsLoRA, feed-forward layers.

They come in a folder's `adapter_config.json`, or, from diffusers, as JSON under the header key
`lora_adapter_metadata` with the component before each key (`unet.lora_alpha`).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

from lora_edge.errors import AdapterFileDamaged, AdapterMismatch, AdapterValueError, UnknownKind
from lora_edge.peftpatterns import Patterns, expression

Made = TypeVar("Made")

CONFIG_FILE = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"
MAX_BYTES = 1_000_000  # of JSON, whose values may take twenty times as much

# What lora-edge reads of PEFT, and which setting is alpha there, None where there is no rank.
TYPES: Mapping[str, str | None] = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "IA3": None}
DEFAULT = 8.0  # PEFT's own, of rank and alpha

# Settings that come with a tensor in every module: setting -> leaf.
PROMISES: Mapping[str, str] = {"use_dora": "lora_magnitude_vector", "lora_bias": "up_bias"}

# Settings that change the mathematics and that lora-edge does not read: each must be absent, null, false or empty.
UNREAD = (
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)

MAX_COMPONENTS = 16

# Initialisations that change the base model too: a file is a difference to the original only after conversion.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of one component.

    Attributes:
        where: the file or header they come from, for messages.
        rank: of every module that `rank_pattern` does not name, None where unsaid.
        alpha: of every module that `alpha_pattern` does not name.
        rank_pattern, alpha_pattern: regular expression for the end of a module's path -> its own number.
        rslora: scale is alpha / sqrt(rank) (Kalajdzievski 2023).
        feedforward: ends of the paths of IA3's feed-forward layers, or one regular expression for the whole path;
            None where unsaid.
        promised: leaves that every module has by these settings.
    """

    where: str
    rank: int | None
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    feedforward: tuple[str, ...] | str | None = None
    promised: frozenset[str] = frozenset()

    @cached_property
    def _patterns(self) -> dict[str, Patterns]:
        return {"rank_pattern": Patterns(self.rank_pattern), "alpha_pattern": Patterns(self.alpha_pattern)}

    @classmethod
    def parse(cls, items: Mapping[str, Any], where: str) -> Self:
        """Check the settings of one component.

        Raises:
            UnknownKind: a kind that is not in TYPES, or a setting that changes the mathematics and is not read.
            AdapterFileDamaged: a setting of another type than PEFT writes.
            AdapterValueError: an alpha that is not finite.
        """
        kind = items.get("peft_type", "LORA")
        if not isinstance(kind, str) or kind not in TYPES:
            raise UnknownKind(f"{where} is of the PEFT kind {kind!r}; lora-edge reads {', '.join(TYPES)} there")
        for key in UNREAD:
            if items.get(key):
                raise UnknownKind(f"{where} sets {key}, which lora-edge does not read")
        if items.get("bias", "none") not in ("none", None):
            raise UnknownKind(f"{where} sets bias to {items['bias']!r}: whole biases, which lora-edge does not read")
        start = items.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(CHANGED_BASES):
            raise UnknownKind(f"{where} was trained from {start!r}, which changes the base; convert it to LoRA in PEFT")
        ranks = {key: int(value) for key, value in _numbers(items, "rank_pattern", where).items()}
        alphas = _numbers(items, "alpha_pattern", where)
        rank = _number(items["r"], "r", where) if items.get("r") is not None else None
        named = TYPES[kind]
        alpha = _number(items.get(named, DEFAULT), named, where) if named else DEFAULT
        rslora, forward = bool(items.get("use_rslora")), _feedforward(items, where)
        for key, numbers in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            _checked(partial(Patterns, numbers), key, where)
        promised = frozenset(leaf for key, leaf in PROMISES.items() if items.get(key))
        return cls(where, int(rank) if rank else None, alpha, ranks, alphas, rslora, forward, promised)

    def check(self, leaves: Iterable[str]) -> None:
        """Refuse a module without the tensors that the settings promise. Raises AdapterMismatch."""
        if missing := self.promised.difference(leaves):
            raise AdapterMismatch(f"has no {' and '.join(sorted(missing))}, which {self.where} promises")

    def scale(self, module: str, rank: int | None) -> float:
        """alpha / rank of a module; rank: what its tensors show, None where they show none.

        Raises:
            AdapterMismatch: the settings give the module another rank.
        """
        said = _or(self._patterns["rank_pattern"].find(module), self.rank)
        if said is not None and rank is not None and said != rank:
            raise AdapterMismatch(f"has rank {rank} where {self.where} says {said}")
        divisor = rank or said or DEFAULT
        alpha = _or(self._patterns["alpha_pattern"].find(module), self.alpha)
        return (alpha or 0.0) / (math.sqrt(divisor) if self.rslora else divisor)

    def is_feedforward(self, module: str) -> bool | None:
        """Whether IA3 scales the inputs of a module, None where the settings do not say (PEFT, tuners/ia3/model.py)."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return None if self.feedforward is None else module.endswith(self.feedforward)


def read_folder_config(folder: Path) -> PeftConfig | None:
    """The settings of a PEFT folder, None where it has no config. Raises as `PeftConfig.parse`."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise AdapterFileDamaged(f"{path} is not a regular file")
        with path.open("rb") as file:
            text = file.read(min(path.stat().st_size, MAX_BYTES) + 1)  # which is taken before it is filled
    except OSError as reason:
        raise AdapterFileDamaged(f"{path} cannot be read: {reason.strerror or reason}") from reason
    return PeftConfig.parse(_object(text, str(path)), str(path))


def read_header_configs(metadata: Mapping[str, str], path: Path) -> dict[str, PeftConfig]:
    """Component -> the settings in a header, empty where it has none. Raises as `PeftConfig.parse`."""
    if METADATA_KEY not in metadata:
        return {}
    where = f"{METADATA_KEY} of {path}"
    parts: dict[str, dict[str, Any]] = {}
    for key, value in _object(metadata[METADATA_KEY], where).items():
        component, _, setting = key.partition(".")
        parts.setdefault(component, {})[setting] = value
        if len(parts) > MAX_COMPONENTS:
            raise AdapterFileDamaged(f"{where} names more than {MAX_COMPONENTS} components")
    return {component: PeftConfig.parse(items, where) for component, items in parts.items()}


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise AdapterFileDamaged(f"{where} is larger than {MAX_BYTES} bytes")
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise AdapterFileDamaged(f"{where} is not JSON: {reason}") from None
    if not isinstance(items, dict):
        raise AdapterFileDamaged(f"{where} is not a JSON object")
    return items


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AdapterFileDamaged(f"{where} gives {key} as {value!r} where a number belongs")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AdapterValueError(f"{where} gives {key} as {value}, which is not finite")
    return number


def _numbers(items: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    pattern = items.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterFileDamaged(f"{where} gives {key} as something else than a map")
    return {name: _number(value, f"{key} of {name}", where) for name, value in pattern.items()}


def _feedforward(items: Mapping[str, Any], where: str) -> tuple[str, ...] | str | None:
    said = items.get("feedforward_modules")
    if said is None or isinstance(said, str):
        if said is not None:
            _checked(partial(expression, said, said), "feedforward_modules", where)
        return said
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise AdapterFileDamaged(f"{where} gives feedforward_modules as something else than a list of names")
    return tuple(said)


def _checked(make: Callable[[], Made], key: str, where: str) -> Made:
    """What is made of a setting that holds regular expressions."""
    try:
        return make()
    except ValueError as reason:
        raise AdapterFileDamaged(f"{where} {reason} (in {key})") from None


def _or(found: float | None, otherwise: float | None) -> float | None:
    return otherwise if found is None else found
