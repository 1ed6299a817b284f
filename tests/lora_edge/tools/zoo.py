"""A file with a layer of each of many kinds, and what it does to the weights, by the formulas in float64.

Sources: LyCORIS 4 (functional/, modules/), kohya-ss/sd-scripts (networks/lora.py, oft.py).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lora_edge.slots import Slot
from lora_edge.tools.checkpoint import Checkpoint

Leaves = dict[str, Any]
Made = tuple[Leaves, dict[str, Any]]  # leaf -> tensor of the file; weight, bias -> change at multiplier 1

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYER = "text_model.encoder.layers.0"


def lora(rng: Any, slot: Slot, weight: Any) -> Made:
    down, up = rng.standard_normal((3, slot.patch)), rng.standard_normal((slot.out_features, 3))
    leaves = {"lora_down.weight": down.reshape(3, *slot.weight_shape[1:]), "lora_up.weight": up, "alpha": 1.5}
    if slot.kernel:
        leaves["lora_up.weight"] = up.reshape(slot.out_features, 3, 1, 1)
    return leaves, {"weight": 0.5 * up @ down}


def dora(rng: Any, slot: Slot, weight: Any) -> Made:
    leaves, change = lora(rng, slot, weight)
    leaves["dora_scale"] = scale = 1 + rng.random((slot.out_features, 1, *(1 for _ in slot.kernel or ())))
    direction = weight.reshape(slot.out_features, -1) + change["weight"]
    whole = scale.reshape(-1, 1) * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return leaves, {"weight": whole - weight.reshape(slot.out_features, -1)}


def loha(rng: Any, slot: Slot, weight: Any) -> Made:
    first, second = (
        (rng.standard_normal((slot.out_features, 2)), rng.standard_normal((2, slot.patch))) for _ in range(2)
    )
    leaves = {
        "hada_w1_a": first[0],
        "hada_w1_b": first[1],
        "hada_w2_a": second[0],
        "hada_w2_b": second[1],
        "alpha": 1.0,
    }
    return leaves, {"weight": 0.5 * (first[0] @ first[1]) * (second[0] @ second[1])}


def lokr(rng: Any, slot: Slot, weight: Any) -> Made:
    one = rng.standard_normal((4, 4))
    other = rng.standard_normal((slot.out_features // 4, slot.in_features // 4))
    return {"lokr_w1": one, "lokr_w2": other, "alpha": 1.0}, {"weight": np.kron(one, other)}


def ia3_out(rng: Any, slot: Slot, weight: Any) -> Made:
    gain = rng.standard_normal(slot.out_features)
    return {"weight": gain, "on_input": 0.0}, {"weight": gain[:, None] * weight.reshape(len(weight), -1)}


def ia3_in(rng: Any, slot: Slot, weight: Any) -> Made:
    gain = rng.standard_normal(slot.in_features)
    return {"weight": gain, "on_input": 1.0}, {"weight": gain * weight}


def full(rng: Any, slot: Slot, weight: Any) -> Made:
    diff, bias = rng.standard_normal(slot.weight_shape), rng.standard_normal(slot.out_features)
    return {"diff": diff, "diff_b": bias}, {"weight": diff, "bias": bias}


def oft(rng: Any, slot: Slot, weight: Any) -> Made:
    size = slot.out_features // 4
    blocks = 0.3 * rng.standard_normal((4, size, size))
    turned = []
    for block, rows in zip(blocks, weight.reshape(4, size, -1), strict=True):
        skew = block - block.T
        turned.append(((np.eye(size) + skew) @ np.linalg.inv(np.eye(size) - skew)).T @ rows)
    return {"oft_blocks": blocks, "alpha": 0.0}, {"weight": np.concatenate(turned) - weight.reshape(len(weight), -1)}


KINDS: dict[tuple[str, str], Callable[[Any, Slot, Any], Made]] = {
    ("unet", f"{BLOCK}.attn1.to_q"): lora,
    ("unet", "down_blocks.0.resnets.0.conv1"): lora,
    ("unet", f"{BLOCK}.attn1.to_k"): dora,
    ("unet", "mid_block.resnets.0.conv1"): dora,
    ("unet", f"{BLOCK}.attn1.to_v"): loha,
    ("unet", f"{BLOCK}.attn2.to_q"): lokr,
    ("unet", f"{BLOCK}.attn2.to_k"): ia3_out,
    ("unet", f"{BLOCK}.ff.net.2"): ia3_in,
    ("unet", "down_blocks.0.attentions.0.proj_in"): full,
    ("unet", f"{BLOCK}.attn2.to_out.0"): oft,
    ("text_encoder", f"{LAYER}.self_attn.q_proj"): lora,
    ("text_encoder", f"{LAYER}.mlp.fc1"): dora,
    ("text_encoder", f"{LAYER}.mlp.fc2"): full,
}
NORMS = (("unet", "conv_norm_out"), ("text_encoder", f"{LAYER}.layer_norm1"))
PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


def file_of_all(base: Checkpoint, seed: int) -> tuple[Leaves, dict[str, dict[str, Any]]]:
    """(tensors of the file in float32, component -> tensor -> change at multiplier 1 in its shape)."""
    rng = np.random.default_rng(seed)
    slots = {(table.component, slot.name): slot for table in base.tables for slot in table}
    tensors: Leaves = {}
    changes: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    for (component, name), make in KINDS.items():
        slot, weight = slots[component, name], base.weight(component, name).astype(np.float64)
        leaves, change = make(_Rounded(rng), slot, weight)
        module = f"{PREFIX[component]}_{name.replace('.', '_')}"
        tensors |= {f"{module}.{leaf}": np.asarray(array, np.float32) for leaf, array in leaves.items()}
        shapes = {"weight": slot.weight_shape, "bias": (slot.out_features,)}
        changes[component] |= {f"{name}.{leaf}": array.reshape(shapes[leaf]) for leaf, array in change.items()}
    norms = {(table.component, name): channels for table in base.tables for name, channels in table.norms.items()}
    for component, name in NORMS:
        module = f"{PREFIX[component]}_{name.replace('.', '_')}"
        for leaf, suffix in (("weight", "w_norm"), ("bias", "b_norm")):
            change = _Rounded(rng).standard_normal(norms[component, name])
            tensors[f"{module}.{suffix}"] = change.astype(np.float32)
            changes[component][f"{name}.{leaf}"] = change
    return tensors, changes


class _Rounded:
    """A tenth of random numbers that float32 holds exactly, as float64."""

    def __init__(self, rng: Any) -> None:
        self._rng = rng

    def standard_normal(self, shape: Any) -> Any:
        return (0.1 * self._rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    def random(self, shape: Any) -> Any:
        return self._rng.random(shape).astype(np.float32).astype(np.float64)
