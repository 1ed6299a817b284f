"""Stand-ins for Core ML packages: a manifest as an export writes it, and the ONNX graphs behind Apple's names.

They prove layout and translation exactly, in float32; what real packages give is tested with packages.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.runtime.session import Session
from lora_edge.slots import Slot, SlotTable

NAMES = {
    "Unet.mlpackage": "unet",
    "TextEncoderWithAdapters.mlpackage": "text_encoder",
    "VAEDecoder.mlpackage": "vae_decoder",
}


def port(name: str, shape: tuple[int, ...], dtype: str = "fp32", default: float | None = None) -> dict[str, Any]:
    told = {"name": name, "shape": list(shape), "dtype": dtype, "optional": default is not None}
    return told if default is None else {**told, "default": default}


def manifest(bundle: Bundle, rank: int, dtype: str = "fp32", conv_slots: bool = False) -> dict[str, Any]:
    """lora_edge_coreml.json for a bundle, two rows a run of the UNet, its Linear slots as matrices."""
    config = bundle.component("unet").config
    size, width = config["sample_size"], config["cross_attention_dim"]
    factor = 2 ** (len(bundle.component("vae_decoder").config["block_out_channels"]) - 1)
    plain = {
        "Unet.mlpackage": (
            [
                port("sample", (2, 4, size, size)),
                port("timestep", (2,)),
                port("encoder_hidden_states", (2, width, 1, 77)),
            ],
            [port("noise_pred", (2, 4, size, size))],
        ),
        "TextEncoderWithAdapters.mlpackage": (
            [port("input_ids", (1, 77), "int32")],
            [port("last_hidden_state", (1, 77, width)), port("pooled_outputs", (1, width))],
        ),
        "VAEDecoder.mlpackage": (
            [port("z", (1, 4, size, size))],
            [port("image", (1, 3, size * factor, size * factor))],
        ),
    }
    components = {}
    for name, component in NAMES.items():
        table = bundle.component(component).table
        slots = {slot.name: _slot(slot, rank) for slot in table if conv_slots or slot.kernel in (None, (1, 1))}
        inputs, outputs = plain[name]
        adapters = [
            port(pair[leaf], tuple(pair[f"{leaf}_shape"]), dtype, 0.0)
            for pair in slots.values()
            for leaf in ("down", "up")
        ]
        scale = [port("lora_scale", (rank,), dtype, 1.0)] if slots else []
        ports = {name: {"inputs": inputs + scale + adapters, "outputs": outputs}}
        components[component] = {"packages": [name], "ports": ports, "slots": slots, "scale": "lora_scale"}
    versions = {"format": 1, "abi": 1, "fingerprint": bundle.fingerprint, "os": "iOS17", "attention": "original"}
    return {**versions, "rank": rank, "precision": "fp32", "rows": 2, "latent": [size, size], "components": components}


def _slot(slot: Slot, rank: int) -> dict[str, Any]:
    name = slot.name.replace(".", "_")
    made: dict[str, Any] = {"down": f"{name}_down", "up": f"{name}_up"}
    if slot.kernel is None:
        return {**made, "down_shape": [slot.in_features, rank], "up_shape": [rank, slot.out_features]}
    down = [rank, slot.in_features, *slot.kernel]
    return {**made, "down_shape": down, "up_shape": [slot.out_features, rank, 1, 1]}


def write(bundle: Path, told: Mapping[str, Any]) -> None:
    """The folder `coreml/`, its packages empty."""
    folder = bundle / "coreml"
    for component in told["components"].values():
        for name in component["packages"]:
            (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "lora_edge_coreml.json").write_text(json.dumps(told), encoding="utf-8")


class StandIn:
    """A package (see `runtime.coreml.graph.Runner`) that runs the bundle's ONNX graph.

    Attributes:
        fed: what each run was given.
    """

    def __init__(self, path: Path, precision: str) -> None:
        bundle = Bundle.open(path.parent.parent)
        component = bundle.component(NAMES[path.name])
        self.name, self.table = component.name, component.table
        self.fed: list[dict[str, Array]] = []
        self._session = Session(component.graph, threads=1)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.fed.append(dict(feeds))
        given = dict(feeds)
        adapters = _adapter_inputs(self.table, given)
        made = self._session.run({**PLAIN[self.name](given), **adapters})
        renamed = {"out_sample": "noise_pred", "pooler_output": "pooled_outputs"}
        renamed |= {"sample": "image"} if self.name == "vae_decoder" else {}
        return {renamed.get(name, name.replace(".", "_")): array for name, array in made.items()}


def _unet(given: dict[str, Array]) -> dict[str, Array]:
    assert given["sample"].shape[0] == given["timestep"].shape[0] == 2
    context = given["encoder_hidden_states"].squeeze(2).transpose(0, 2, 1)
    return {"sample": given["sample"], "timestep": given["timestep"][:1], "encoder_hidden_states": context}


PLAIN: dict[str, Any] = {
    "unet": _unet,
    "text_encoder": lambda given: {"input_ids": given["input_ids"].astype(np.int64)},
    "vae_decoder": lambda given: {"latent_sample": given["z"]},
}


def _adapter_inputs(table: SlotTable, given: Mapping[str, Array]) -> dict[str, Array]:
    """Every slot with all lanes of the bucket, as the graph contract of ONNX spells it."""
    if "lora_scale" not in given:
        return {}
    made: dict[str, Array] = {}
    ranks, scale = [], given["lora_scale"].astype(np.float32)
    for slot in table:
        name = slot.name.replace(".", "_")
        if held := f"{name}_down" in given:
            down, up = given[f"{name}_down"], given[f"{name}_up"]
            if down.ndim == 4:
                down, up = down.reshape(len(down), -1).T, up.reshape(len(up), -1).T
            made |= {slot.port("down"): down.astype(np.float32), slot.port("up"): up.astype(np.float32)}
        ranks.append(len(scale) if held else 0)
    scales = np.tile(scale, sum(rank > 0 for rank in ranks))[None]
    return {**made, "lora.ranks": np.array(ranks), "lora.scales": scales}
