"""What is traced into each package: its module, inputs, outputs and slots, under the names of Apple's pipeline.

Names and layouts are those of apple/ml-stable-diffusion, whose Swift classes find the packages by file name:
`sample` [2, channels, height, width], `timestep` [2], `encoder_hidden_states` [2, width, 1, tokens] -> `noise_pred`;
`input_ids` [1, tokens] -> `last_hidden_state`, `pooled_outputs`; `z` -> `image`; `x` -> `latent` (mean and logarithm of
the variance). Apple's text encoder has one input, in float32; ours takes adapters and int32 besides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lora_edge.export.checkpoint import Part, settings_of
from lora_edge.export.coreml.einsum import split_einsum
from lora_edge.export.coreml.norms import half_norms, shared_copy
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.ports import SCALE, Dtype, Pair, Port
from lora_edge.export.coreml.slotted import Slotted
from lora_edge.export.recipes.base import seeded
from lora_edge.export.slotted import REFERENCE_ROWS
from lora_edge.slots import Slot, SlotTable

FINAL_NORM = "text_model.final_layer_norm"


@dataclass(frozen=True)
class Sizes:
    """What packages are fixed to: rows and columns of the latents, tokens of the text."""

    latent: tuple[int, int]
    tokens: int = 77


@dataclass(frozen=True)
class Program:
    """One package to be.

    Attributes:
        component: its entry in the Core ML manifest.
        package: file name without the ending.
        module: takes the required inputs, in order.
        reference: what `module` must equal, with the checkpoint's own layers; takes the same inputs.
        example: inputs, as they are traced and compared.
        inputs: the required ones.
        outputs: names in order.
        layers: slot name -> the layer of `module` that takes its lanes.
        originals: slot name -> the layer of `reference`.
        pairs: the slots' inputs; none for a package without adapters.
    """

    component: str
    package: str
    module: nn.Module
    reference: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    originals: Mapping[str, nn.Module] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()

    @property
    def adapter_ports(self) -> tuple[Port, ...]:
        """lora_scale, then down and up of each pair; empty without slots."""
        if not self.pairs:
            return ()
        lanes = self.pairs[0].down
        rank = self.pairs[0].up.shape[1 if len(lanes.shape) == 4 else 0]
        scale = Port(SCALE, (rank,), lanes.dtype, 1.0)
        return (scale, *(port for pair in self.pairs for port in (pair.down, pair.up)))

    @property
    def traced(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The module with its adapter inputs, and an input for each."""
        if not self.pairs:
            return self.module.eval(), self.example
        lanes = tuple(torch.zeros(port.shape) for port in self.adapter_ports)
        return Slotted(self.module, dict(self.layers), self.pairs, len(self.example)).eval(), (*self.example, *lanes)


class _Noise(nn.Module):
    """A UNet that takes the text in Apple's layout; `folded` where it does so by itself."""

    def __init__(self, unet: nn.Module, folded: bool) -> None:
        super().__init__()
        self.model, self.folded = unet, folded

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        text = encoder_hidden_states
        noise: Tensor = self.model(
            sample, timestep, text if self.folded else text.squeeze(2).transpose(1, 2), return_dict=False
        )[0]
        return noise


class _Plain(nn.Module):
    """last_hidden_state and pooled output of a text encoder, whose input is made int32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.module(input_ids.to(torch.int32))
        return outputs[:2]


class _Skipping(nn.Module):
    """The same, and each state between the layers behind the final norm, as clip skip reads it in Stable Diffusion 1:
    raw states reach 200, where float16 has steps of 0.125."""

    def __init__(self, module: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.module, self.norm = module, norm

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        last, pooled, _embedded, *states, _raw = self.module(input_ids)
        return (last, pooled, *(self.norm(state) for state in states))


def programs(part: Part, table: SlotTable, options: Options, sizes: Sizes) -> list[Program]:
    """The packages of one component; none for a component that Apple's pipeline does not have.

    Raises:
        CheckpointError: its weights cannot be read.
        ExportError: its layers do not fit the attention asked for.
    """
    make = _MAKERS.get(part.recipe.component)
    return make(part, table, options, sizes) if make else []


def _unet(part: Part, table: SlotTable, options: Options, sizes: Sizes) -> list[Program]:
    unet = part.load()
    config = settings_of(unet)
    folded = options.attention == "split-einsum"
    turned = split_einsum(unet) if folded else unet
    noise = seeded(0)
    sample = torch.randn(REFERENCE_ROWS, config["in_channels"], *sizes.latent, generator=noise)
    text = torch.randn(REFERENCE_ROWS, config["cross_attention_dim"], 1, sizes.tokens, generator=noise)
    timestep = torch.linspace(501, 521, REFERENCE_ROWS)
    made = Program(
        component="unet",
        package="Unet",
        module=_Noise(turned, folded),
        reference=_Noise(unet, False),
        example=(sample.half().float(), timestep, text.half().float()),
        inputs=(
            Port("sample", tuple(sample.shape), options.precision),
            Port("timestep", tuple(timestep.shape), "fp32"),
            Port("encoder_hidden_states", tuple(text.shape), options.precision),
        ),
        outputs=("noise_pred",),
    )
    return [_slotted(made, part, turned, unet, table, options)]


def _text_encoder(part: Part, table: SlotTable, options: Options, sizes: Sizes) -> list[Program]:
    encoder = part.load()
    ids = part.recipe.example(settings_of(encoder), 1, 0)[0]
    norm = _layers(part, encoder)[FINAL_NORM]
    between = range(1, encoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    wrapped = part.recipe.wrap(encoder)

    def made(component: str, package: str, module: nn.Module, dtype: Dtype, *more: str) -> Program:
        example = ids.to(torch.int32 if dtype == "int32" else torch.float32)
        inputs = (Port("input_ids", tuple(ids.shape), dtype),)
        names = ("last_hidden_state", "pooled_outputs", *more)
        return Program(component, package, module, module, (example,), inputs, names)

    states = (f"normed_states_{layer}" for layer in between)
    adapted = made("text_encoder", "TextEncoderWithAdapters", _Skipping(wrapped, norm), "int32", *states)
    return [
        made("text_encoder_plain", "TextEncoder", _Plain(wrapped), "fp32"),
        _slotted(adapted, part, encoder, encoder, table, options),
    ]


def _slotted(
    program: Program, part: Part, module: nn.Module, original: nn.Module, table: SlotTable, options: Options
) -> Program:
    layer_of = _layers(part, module)
    pairs = tuple(
        Pair.of(slot, options.rank, options.precision, isinstance(layer_of[slot.name], nn.Conv2d))
        for slot in table
        if _taken(slot, options)
    )
    return replace(program, layers=layer_of, originals=_layers(part, original), pairs=pairs)


def _layers(part: Part, owner: nn.Module) -> dict[str, nn.Module]:
    return {part.recipe.canonical(path): layer for path, layer in owner.named_modules()}


def _taken(slot: Slot, options: Options) -> bool:
    return slot.kernel in (None, (1, 1)) or options.conv_slots


def _autoencoder(package: str, given: str, made: str, pixels: bool) -> Callable[..., list[Program]]:
    def make(part: Part, table: SlotTable, options: Options, sizes: Sizes) -> list[Program]:
        module = part.load()
        config: Mapping[str, Any] = settings_of(module)
        factor = 2 ** (len(config["block_out_channels"]) - 1) if pixels else 1
        channels = config["in_channels"] if pixels else config["latent_channels"]
        shape = (1, channels, sizes.latent[0] * factor, sizes.latent[1] * factor)
        example = torch.randn(*shape, generator=seeded(0)).clamp(-1, 1).half().float()
        reference = part.recipe.wrap(module)
        half = options.attention == "split-einsum"
        traced = part.recipe.wrap(half_norms(shared_copy(module))) if half else reference
        inputs = (Port(given, shape, options.precision),)
        return [Program(part.recipe.component, package, traced, reference, (example,), inputs, (made,))]

    return make


_MAKERS: Mapping[str, Callable[[Part, SlotTable, Options, Sizes], list[Program]]] = {
    "unet": _unet,
    "text_encoder": _text_encoder,
    "vae_decoder": _autoencoder("VAEDecoder", "z", "image", pixels=False),
    "vae_encoder": _autoencoder("VAEEncoder", "x", "latent", pixels=True),
}
