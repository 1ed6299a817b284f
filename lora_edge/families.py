"""The layers of the base models that adapters are made for, as slot tables: names and widths, without any weights.

SD1, SD2, SDXL and its refiner are one architecture with other numbers, so each is a line of numbers here (their
published `unet/config.json` and `text_encoder/config.json`). A text encoder that two families share is one table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from lora_edge.slots import Slot, SlotTable

LAYERS = 2  # resnets of a level of the encoder; the decoder has one more
FOREIGN = ("SD3", "Flux")  # known by their names alone


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text encoder.

    Attributes:
        layers: how many.
        width: of the hidden states.
        projected: whether it ends in a `text_projection`.
    """

    layers: int
    width: int
    projected: bool = False


@dataclass(frozen=True)
class Family:
    """A family of base models.

    Attributes:
        channels: of each level of the UNet.
        depths: transformer blocks of each level, 0 where it has no attention.
        middle: transformer blocks in the middle.
        context: width of the text that cross-attention reads.
        linear: whether proj_in and proj_out are Linear layers, else 1x1 convolutions.
        added: input width of the embedding of sizes and pooled text, 0 where there is none.
        texts: component -> text encoder.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    context: int
    linear: bool = True
    added: int = 0
    texts: Mapping[str, TextEncoder] = field(default_factory=dict)


CLIP_L = TextEncoder(12, 768)
CLIP_H = TextEncoder(23, 1024)
CLIP_G = TextEncoder(32, 1280, projected=True)

FAMILIES: Mapping[str, Family] = {
    "SD1": Family((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, False, 0, {"text_encoder": CLIP_L}),
    "SD2": Family((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, True, 0, {"text_encoder": CLIP_H}),
    "SDXL": Family(
        (320, 640, 1280), (0, 2, 10), 10, 2048, True, 2816, {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
    ),
    "SDXL refiner": Family(
        (384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, True, 2560, {"text_encoder_2": CLIP_G}
    ),
}  # fmt: skip


@cache
def tables(family: str) -> tuple[SlotTable, ...]:
    """The UNet's and the text encoders' slots of a family in `FAMILIES`."""
    numbers = FAMILIES[family]
    facts = {"layers_per_block": LAYERS, "levels": len(numbers.channels), "cross_attention_dim": numbers.context}
    texts = (SlotTable(name, tuple(_text(text))) for name, text in numbers.texts.items())
    return (SlotTable("unet", tuple(_unet(numbers)), facts=facts), *texts)


def _unet(family: Family) -> Iterator[Slot]:
    first, last = family.channels[0], family.channels[-1]
    time = 4 * first
    yield _conv("conv_in", 4, first)
    yield from _pair("time_embedding", first, time)
    if family.added:
        yield from _pair("add_embedding", family.added, time)
    skips, width = [first], first
    for level, (out, depth) in enumerate(zip(family.channels, family.depths, strict=True)):
        block = f"down_blocks.{level}"
        yield from _level(block, [width, *[out] * (LAYERS - 1)], out, depth, family, time)
        skips, width = [*skips, *[out] * LAYERS], out
        if level < len(family.channels) - 1:
            yield _conv(f"{block}.downsamplers.0.conv", out, out)
            skips.append(out)
    yield from _level("mid_block", [last, last], last, 0, family, time)
    yield from _transformer("mid_block.attentions.0", last, family.middle, family)
    decoder = zip(reversed(family.channels), reversed(family.depths), strict=True)
    for level, (out, depth) in enumerate(decoder):
        block = f"up_blocks.{level}"
        ins = [before + skips.pop() for before in (width, *[out] * LAYERS)]
        yield from _level(block, ins, out, depth, family, time)
        width = out
        if level < len(family.channels) - 1:
            yield _conv(f"{block}.upsamplers.0.conv", out, out)
    yield _conv("conv_out", first, 4)


def _level(block: str, ins: Sequence[int], out: int, depth: int, family: Family, time: int) -> Iterator[Slot]:
    for number, width in enumerate(ins):
        resnet = f"{block}.resnets.{number}"
        yield _conv(f"{resnet}.conv1", width, out)
        yield Slot(f"{resnet}.time_emb_proj", time, out)
        yield _conv(f"{resnet}.conv2", out, out)
        if width != out:
            yield _conv(f"{resnet}.conv_shortcut", width, out, 1)
        if depth:
            yield from _transformer(f"{block}.attentions.{number}", out, depth, family)


def _transformer(path: str, width: int, depth: int, family: Family) -> Iterator[Slot]:
    kernel = None if family.linear else (1, 1)
    for name in ("proj_in", "proj_out"):
        yield Slot(f"{path}.{name}", width, width, kernel)
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        for attention, read in (("attn1", width), ("attn2", family.context)):
            yield Slot(f"{block}.{attention}.to_q", width, width)
            yield Slot(f"{block}.{attention}.to_k", read, width)
            yield Slot(f"{block}.{attention}.to_v", read, width)
            yield Slot(f"{block}.{attention}.to_out.0", width, width)
        yield Slot(f"{block}.ff.net.0.proj", width, 8 * width)  # GEGLU: gate and value
        yield Slot(f"{block}.ff.net.2", 4 * width, width)


def _text(text: TextEncoder) -> Iterator[Slot]:
    for number in range(text.layers):
        layer = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Slot(f"{layer}.self_attn.{name}", text.width, text.width)
        yield Slot(f"{layer}.mlp.fc1", text.width, 4 * text.width)
        yield Slot(f"{layer}.mlp.fc2", 4 * text.width, text.width)
    if text.projected:
        yield Slot("text_projection", text.width, text.width)


def _conv(name: str, width: int, out: int, side: int = 3) -> Slot:
    return Slot(name, width, out, (side, side))


def _pair(name: str, width: int, out: int) -> Iterator[Slot]:
    yield Slot(f"{name}.linear_1", width, out)
    yield Slot(f"{name}.linear_2", out, out)
