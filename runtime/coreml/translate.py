"""Our names and layouts of inputs and outputs in those of Apple's ml-stable-diffusion (torch2coreml.py).

Apple's UNet takes `encoder_hidden_states` as [2, dim, 1, tokens], channels first as its Neural Engine likes them, and
its VAE calls latents and pixels by other names. Sizes are whatever the package declares.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lora_edge.arrays import Array
from lora_edge.errors import BundleDamaged, RequestError
from lora_edge.graph import GraphInput
from lora_edge.runtime.coreml.manifest import Packaged, Port

_NUMBERED = re.compile(r"(normed_states)_(\d+)$")  # a package's names have no dots


@dataclass(frozen=True)
class Names:
    """One component's names: ours -> Apple's; a name that is missing is the same."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)


NAMES: Mapping[str, Names] = {
    "unet": Names(
        {name: name for name in ("sample", "timestep", "encoder_hidden_states")},
        {"out_sample": "noise_pred"},
    ),
    "text_encoder": Names(
        {"input_ids": "input_ids"},
        {"last_hidden_state": "last_hidden_state", "pooler_output": "pooled_outputs"},
    ),
    "vae_decoder": Names({"latent_sample": "z"}, {"sample": "image"}),
    "vae_encoder": Names({"sample": "x"}, {"latent_parameters": "latent"}),
}


@dataclass(frozen=True)
class Input:
    """An input of ours and the port that it goes to.

    Attributes:
        port: of the package.
        described: as `Graph.inputs` tells it.
        turn: from our layout to the package's, for so many rows.
    """

    port: Port
    described: GraphInput
    turn: Callable[[Array], Array]


def inputs(component: str, packaged: Packaged) -> dict[str, Input]:
    """Our inputs of a component.

    Raises:
        BundleDamaged: the packages lack one, or need another.
    """
    ports = packaged.inputs
    named = NAMES[component].inputs
    needed = {name for name, port in ports.items() if not port.optional}
    if strange := needed.symmetric_difference(named.values()) - packaged.adapter_inputs.keys():
        raise BundleDamaged(
            f"{packaged.stages[0].path} takes {', '.join(sorted(needed))} where {', '.join(named.values())} are known; "
            f"they differ in {', '.join(sorted(strange))}"
        )
    return {ours: _input(ours, ports[theirs]) for ours, theirs in named.items()}


def outputs(component: str, packaged: Packaged) -> dict[str, str]:
    """Our name -> the package's, of every output; a single one needs no name."""
    named = {theirs: ours for ours, theirs in NAMES[component].outputs.items()}
    named |= {name: _NUMBERED.sub(r"\1.\2", name) for name in packaged.outputs if _NUMBERED.match(name)}
    there = list(packaged.outputs)
    if len(there) == 1:
        return {next(iter(NAMES[component].outputs)): there[0]}
    return {named.get(name, name): name for name in there}


def _input(ours: str, port: Port) -> Input:
    if len(port.shape) == 4 and ours == "encoder_hidden_states":
        _, dim, _, tokens = port.shape
        return Input(port, GraphInput(("rows", "tokens", dim), port.dtype), _channels_first(tokens))
    return Input(port, GraphInput(("rows", *port.shape[1:]), port.dtype), _as_it_is)


def _as_it_is(array: Array) -> Array:
    return array


def _channels_first(tokens: int) -> Callable[[Array], Array]:
    def turn(states: Array) -> Array:
        """[rows, tokens, dim] -> [rows, dim, 1, tokens]."""
        if states.shape[1] != tokens:
            raise RequestError(
                f"the prompts take {states.shape[1]} tokens where the Core ML package reads {tokens}: keep them to one "
                "chunk, or use the backend onnxruntime"
            )
        return states.transpose(0, 2, 1)[:, :, None, :]

    return turn
