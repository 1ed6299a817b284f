"""Which base model a file was made for: what names and widths of its tensors say, then its metadata.

Every layer of the known families is spelled in every dialect; the family whose layers have the names and widths that
the file shows is the one. It explains a refusal and never causes one: a base of its own widths is nobody's family, and
its adapters fit it all the same.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from lora_edge.dialects import spell
from lora_edge.families import FAMILIES, tables
from lora_edge.kinds import split
from lora_edge.slots import Slot, SlotTable

Shape = tuple[int, ...]


class Tensors(Protocol):
    """An open file, as far as its header tells: a `TensorFile`."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def shape(self, name: str) -> Shape: ...


@dataclass(frozen=True)
class Base:
    """What a file was made for.

    Attributes:
        families: the families that it may be for, several where nothing tells them apart; empty where it is for none
            that is known.
        width: of the text that its cross-attention reads, None where no tensor shows it.
        conflict: a sentence where metadata and tensors contradict each other, else "".
    """

    families: tuple[str, ...] = ()
    width: int | None = None
    conflict: str = ""

    def __str__(self) -> str:
        return " or ".join(self.families) or (_custom(self.width) if self.width else "")


Sizes = Mapping[str, int]

# What a tensor, by the end of its name, shows of its layer: least number of axes, then axis -> size.
_READ: tuple[tuple[str, int, Callable[[Shape], Sizes]], ...] = (
    (r"(lora_down|lora_A(\.[^.]+)?|lora\.down|lora_linear_layer\.down|down)\.weight", 2, lambda s: {"in": s[1]}),
    (r"(lora_up|lora_B(\.[^.]+)?|lora\.up|lora_linear_layer\.up|up)\.weight", 2, lambda s: {"out": s[0]}),
    (r"hada_w[12]_b|lokr_w[12]_b", 2, lambda s: {"in": s[1]}),
    (r"hada_w[12]_a|lokr_w[12]_a", 2, lambda s: {"out": s[0]}),
    (r"lokr_w[12]|diff", 2, lambda s: {"out": s[0], "in": s[1]}),
    (r"lora_magnitude_vector(\..+)?", 1, lambda s: {"out": max(s)}),
    (r"dora_scale", 1, lambda s: {"out": s[0]} if s[0] > 1 else {"in": max(s)}),
    (r"oft_blocks|oft_diag", 3, lambda s: {"out": s[-3] * s[-1]}),
    (r"a[12]\.weight", 2, lambda s: {"in": max(s[:2])}),
    (r"weight|ia3_l(\..+)?", 1, lambda s: {"any": max(s)}),
)
_SIZES = tuple((re.compile(ending), axes, sizes) for ending, axes, sizes in _READ)
_CROSS = re.compile(r"attn2[._](processor\.)?to_[kv](_lora)?$")

# Other architectures: names that only they have, and the family by the width of what their attention reads.
DIT_WIDTHS = {3072: "Flux", 1536: "SD3", 2432: "SD3"}
FOREIGN: tuple[tuple[re.Pattern[str], Mapping[int, str], str], ...] = (
    (re.compile(r"double_blocks|single_transformer_blocks|single_blocks"), {}, "Flux"),
    (re.compile(r"joint_blocks"), {}, "SD3"),
    (re.compile(r"transformer_blocks[._]\d+[._]attn[._](to|add)_[qkv]"), DIT_WIDTHS, "SD3"),
)

# What tells families apart that agree in names and widths: (name and number of axes of some tensor, the families).
HINTS = (
    (re.compile(r"[._]proj_(in|out)\..+ 4$"), ("SD1",)),
    (re.compile(r"lora_te_"), ("SD1", "SD2")),
    (re.compile(r"lora_te1_|lora_te2_|text_encoder_2\."), ("SDXL",)),
)

CLAIMS = tuple(
    (key, re.compile(start, re.IGNORECASE), family)
    for key, starts in {
        "ss_base_model_version": {"sdxl_refiner": "SDXL refiner", "sdxl": "SDXL", "sd_?v?1": "SD1", "sd_?v?2": "SD2",
                                  "sd_?3": "SD3", "flux": "Flux"},
        "modelspec.architecture": {"stable-diffusion-v1": "SD1", "stable-diffusion-v2": "SD2",
                                   "stable-diffusion-xl-v1-refiner": "SDXL refiner", "stable-diffusion-xl": "SDXL",
                                   "stable-diffusion-3": "SD3", "flux": "Flux"},
        "ss_v2": {"true": "SD2"},
    }.items()
    for start, family in starts.items()
)  # fmt: skip


def guess(file: Tensors) -> Base:
    """What a file was made for, from its header alone; shapes go before metadata."""
    modules = _sizes(file)
    width = next((sizes["in"] for name, sizes in modules.items() if "in" in sizes and _CROSS.search(name)), None)
    families = _foreign(modules) or _matching(modules) or _reading(width)
    key, claimed = _claim(file.metadata)
    if claimed in families:
        return Base((claimed,), width)
    shown = [f"{name} {len(file.shape(name))}" for name in file.names] if len(families) > 1 else []
    for pattern, meant in HINTS:
        narrowed = tuple(family for family in families if family in meant)
        if narrowed and any(map(pattern.search, shown)):
            families = narrowed
    if not claimed or not (families or width is None):
        return Base(families, width)
    if not families:
        return Base((claimed,))
    seen, said = " or ".join(families), f"{key} {file.metadata[key][:40]!r}"
    return Base(families, width, f"its metadata says {claimed} ({said}), its tensors {seen}; the tensors count")


def mismatch_hint(file: Tensors, bundle: Iterable[SlotTable]) -> str:
    """The end of a refusal, such as "; made for SDXL, this bundle is SD1"; "" where the base is not the reason."""
    made, (family, width) = guess(file), _bundle(bundle)
    if not str(made) or family in made.families or (made.width is not None and made.width == width):
        return ""
    return f"; made for {made}, this bundle is {family}"


def _bundle(bundle: Iterable[SlotTable]) -> tuple[str, int | None]:
    """Family and cross-attention width of a bundle."""
    key = "cross_attention_dim"
    width = next((table.facts[key] for table in bundle if key in table.facts), None)
    return next(iter(_reading(width)), _custom(width) if width else "custom"), width


def _custom(width: int) -> str:
    return f"custom (cross-attention width {width})"


def _reading(width: int | None) -> tuple[str, ...]:
    """The family whose cross-attention reads text of this width."""
    return tuple(name for name, family in FAMILIES.items() if family.context == width)


def _sizes(file: Tensors) -> dict[str, dict[str, int]]:
    """Module -> what its tensors show of the layer's width: "in", "out", or "any" where a tensor may mean either."""
    made: dict[str, dict[str, int]] = {}
    for tensor in file.names:
        module, _ = split(tensor)
        sizes = made.setdefault(module, {})
        leaf, shape = tensor[len(module) + 1 :], file.shape(tensor)
        reads = (read for ending, axes, read in _SIZES if ending.fullmatch(leaf) and len(shape) >= axes)
        for axis, size in next(reads, lambda _: {})(shape).items():
            sizes[axis] = sizes.get(axis, 1) * size if leaf.startswith("lokr") else size  # its factors multiply
    return made


def _foreign(modules: Mapping[str, Sizes]) -> tuple[str, ...]:
    for mark, widths, family in FOREIGN:
        if marked := [sizes for name, sizes in modules.items() if mark.search(name)]:
            return (next((widths[size] for sizes in marked for size in sizes.values() if size in widths), family),)
    return ()


def _matching(modules: Mapping[str, Sizes]) -> tuple[str, ...]:
    """The families that explain most of the widths shown, if that is half of them, else those that own some names."""
    known, matched, named, alone = 0, Counter[str](), Counter[str](), Counter[str]()
    for module, sizes in modules.items():
        slots = _spelled().get(module)
        if slots is None:
            continue
        known += len(sizes)
        named.update(slots.keys())
        if len(slots) == 1:
            alone.update(slots.keys())
        for family, meant in slots.items():
            matched[family] += max(sum(_agrees(slot, *item) for item in sizes.items()) for slot in meant)
    by_size = _most(matched) if 2 * max(matched.values(), default=0) >= known > 0 else ()
    by_name = _most(alone) or (_most(named) if known == 0 else ())
    return by_size or (by_name if len(by_name) < len(FAMILIES) else ())


def _most(counted: Counter[str]) -> tuple[str, ...]:
    top = max(counted.values(), default=0)
    return tuple(family for family in FAMILIES if top and counted[family] == top)


def _agrees(slot: Slot, axis: str, size: int) -> bool:
    widths = {"in": (slot.in_features, slot.patch), "out": (slot.out_features,)}
    return size in widths.get(axis, (slot.in_features, slot.out_features))


def _claim(metadata: Mapping[str, str]) -> tuple[str, str]:
    """(the key that says it, the family), or two empty strings."""
    return next(((key, family) for key, start, family in CLAIMS if start.match(metadata.get(key, ""))), ("", ""))


@cache
def _spelled() -> dict[str, dict[str, tuple[Slot, ...]]]:
    """Module name in a file -> family -> the layers that it may mean there."""
    made: dict[str, dict[str, tuple[Slot, ...]]] = {}
    for family in FAMILIES:
        own = {table.component: table.by_name for table in tables(family)}
        for name, spelled in spell(tables(family)).items():
            slots = tuple(own[place.component][place.path] for place in spelled.places)
            made.setdefault(name, {})[family] = slots
    return made
