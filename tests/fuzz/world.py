"""A bundle as far as adapters look at it, written by hand: slots, weights and norms of a few layers, no graphs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lora_edge.bundle import Bundle, Component
from lora_edge.graphweights import GraphWeights
from lora_edge.slots import Slot, SlotTable

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYER = "text_model.encoder.layers.0"
WIDTH = 16  # of the text encoder

UNET = (
    Slot("conv_in", 4, 8, (3, 3)),
    Slot("time_embedding.linear_1", 8, 32),
    Slot("down_blocks.0.attentions.0.proj_in", 8, 8, (1, 1)),
    Slot(f"{BLOCK}.attn1.to_q", 8, 8, has_bias=False),
    Slot(f"{BLOCK}.attn1.to_out.0", 8, 8),
    Slot(f"{BLOCK}.attn2.to_k", WIDTH, 8, has_bias=False),
    Slot(f"{BLOCK}.ff.net.0.proj", 8, 64),
    Slot(f"{BLOCK}.ff.net.2", 32, 8),
    Slot("down_blocks.1.resnets.0.conv1", 8, 16, (3, 3)),
    Slot("down_blocks.1.resnets.0.conv_shortcut", 8, 16, (1, 1)),
    Slot("conv_out", 8, 4, (3, 3)),
)
UNET_NORMS = {"down_blocks.0.attentions.0.norm": 8, f"{BLOCK}.norm2": 8, "conv_norm_out": 8}
TEXT = (
    Slot(f"{LAYER}.self_attn.q_proj", WIDTH, WIDTH),
    Slot(f"{LAYER}.self_attn.out_proj", WIDTH, WIDTH),
    Slot(f"{LAYER}.mlp.fc1", WIDTH, 2 * WIDTH),
)
TEXT_NORMS = {f"{LAYER}.layer_norm1": WIDTH, "text_model.final_layer_norm": WIDTH}

TABLES = (
    SlotTable("unet", UNET, UNET_NORMS, {"layers_per_block": 1, "levels": 2, "cross_attention_dim": WIDTH}),
    SlotTable("text_encoder", TEXT, TEXT_NORMS),
)
CONFIGS = {"unet": {"cross_attention_dim": WIDTH}, "text_encoder": {"hidden_size": WIDTH}}


def small_bundle(folder: Path) -> Bundle:
    """The bundle; its weights are written into the folder."""
    components = {table.component: component(folder, table, CONFIGS[table.component]) for table in TABLES}
    return Bundle(folder, {"fingerprint": "5f" * 32, "family": "SD1", "name": "small"}, components)


def component(folder: Path, table: SlotTable, config: Mapping[str, int]) -> Component:
    """One component with random weights, 0.3 the standard deviation of them all."""
    rng = np.random.default_rng(len(table))
    own = folder / table.component
    own.mkdir(parents=True, exist_ok=True)
    norms = {f"{name}.{leaf}": np.ones(size, np.float32) for name, size in table.norms.items() for leaf in LEAVES}
    save_file(norms, own / "norms.safetensors")
    entry: dict[str, dict[str, object]] = {"tensors": {}, "biases": {}}
    place = 0
    with (own / "model.onnx.data").open("wb") as file:
        for slot in table:
            held = {"tensors": slot.weight_shape} | ({"biases": (slot.out_features,)} if slot.has_bias else {})
            for leaf, shape in held.items():
                entry[leaf][slot.name] = {"offset": place, "dtype": "F32", "shape": list(shape)}
                place += file.write((0.3 * rng.standard_normal(shape)).astype("<f4").tobytes())
    weights = GraphWeights.parse(entry, own / "model.onnx.data", table)
    return Component(table.component, own / "model.onnx", table, config, weights)


LEAVES = ("weight", "bias")
