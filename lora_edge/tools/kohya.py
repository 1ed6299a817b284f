"""What the tools write: adapters with kohya's names, which most programs read.

lora_unet_<path>.lora_down.weight [rank, in(, kh, kw)]   .lora_up.weight [out, rank(, 1, 1)]   .alpha
.diff [out, in(, kh, kw)]   .diff_b [out]   .w_norm [channels]   .b_norm [channels]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_edge.arrays import Array
from lora_edge.dialects import kohya
from lora_edge.embedding import Embedding
from lora_edge.embeddingfile import BUNDLED
from lora_edge.slots import Slot, SlotTable
from lora_edge.tools.write import Tensor, floats

# Width of the text context, and whether the model predicts v -> ss_base_model_version, modelspec.architecture
# (kohya-ss/sd-scripts, library/sai_model_spec.py and sdxl_model_util.py).
FAMILIES: Mapping[tuple[int, bool], tuple[str, str]] = {
    (768, False): ("sd_v1", "stable-diffusion-v1/lora"),
    (1024, False): ("sd_v2", "stable-diffusion-v2-512/lora"),
    (1024, True): ("sd_v2_768_v", "stable-diffusion-v2-768-v/lora"),
    (2048, False): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
}

_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # keys of SDXL's embeddings

# Header strings that are untrue once the tensors were changed.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata")


@dataclass(frozen=True)
class Change:
    """What is written for one slot.

    Attributes:
        lanes: (down [patch, lanes], up [lanes, out]), at scale 1.
        whole: the difference of the weight, in its shape, instead of lanes.
        bias: the difference of the bias, [out].
    """

    lanes: tuple[Array, Array] | None = None
    whole: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True)
class Changes:
    """What is written for one component.

    Attributes:
        table: its slots.
        slots: slot name -> what is written for it.
        norms: norm name -> leaf (`weight`, `bias`) -> difference [channels].
    """

    table: SlotTable
    slots: dict[str, Change] = field(default_factory=dict)
    norms: dict[str, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def others(self) -> int:
        """How many biases and norms are changed."""
        return len(self.norms) + sum(change.bias is not None for change in self.slots.values())


def module_name(table: SlotTable, path: str, encoders: int) -> str:
    """A layer's name in a file; with two text encoders the first one is `lora_te1`."""
    first, *others = kohya.spell(table, path)
    numbered = (name for name in others if name.startswith("lora_te1_"))
    return next(numbered, first) if encoders > 1 else first


def adapter_tensors(parts: Sequence[Changes], dtype: str) -> dict[str, Tensor]:
    """Tensor name -> tensor; alpha is the rank and stays float32, the others are rounded to `dtype`."""
    encoders = sum(part.table.component.startswith("text_encoder") for part in parts)
    made: dict[str, Tensor] = {}
    for part in parts:
        for path, leaves in _leaves(part):
            module = module_name(part.table, path, encoders)
            for leaf, array in leaves.items():
                name = f"{module}.{leaf}"
                made[name] = floats(array, "F32" if leaf == "alpha" else dtype, name)
    return made


def _leaves(part: Changes) -> Iterator[tuple[str, dict[str, Array]]]:
    """Layer -> leaf -> array, for slots and norms."""
    for path, change in part.slots.items():
        leaves = lane_leaves(part.table.by_name[path], *change.lanes) if change.lanes else {}
        leaves |= {"diff": change.whole} if change.whole is not None else {}
        yield path, leaves | ({"diff_b": change.bias} if change.bias is not None else {})
    for path, norm in part.norms.items():  # AUTOMATIC1111 reads a norm only if both leaves are there
        zeros = np.zeros(part.table.norms[path], np.float32)
        yield path, {"w_norm": norm.get("weight", zeros), "b_norm": norm.get("bias", zeros)}


def lane_leaves(slot: Slot, down: Array, up: Array) -> dict[str, Array]:
    """The leaves of [patch, lanes] and [lanes, out] at scale 1."""
    rank, ones = up.shape[0], (1,) * len(slot.kernel or ())
    return {
        "lora_down.weight": down.T.reshape(rank, *slot.weight_shape[1:]),
        "lora_up.weight": up.T.reshape(slot.out_features, rank, *ones),
        "alpha": np.array(rank, np.float32),
    }


def word_tensor(word: Embedding, component: str) -> tuple[str, Tensor]:
    """(name, tensor) of a word's vectors for one text encoder, float32."""
    key = "emb_params" if word.vectors.keys() == {"text_encoder"} else _ENCODERS[component]
    name = f"{BUNDLED}{word.name}.{key}"
    return name, floats(word.vectors[component], "F32", name)


def rank_metadata(ranks: Iterable[int], scale: float | None = 1.0) -> dict[str, str]:
    """The header's strings about ranks, as kohya's own tools write them (networks/resize_lora.py).

    Args:
        ranks: of every layer.
        scale: alpha / rank, None where it differs between layers.
    """
    found = sorted(set(ranks))
    uniform = len(found) == 1
    return {
        "ss_network_dim": str(found[0]) if uniform else "Dynamic",
        "ss_network_alpha": str(found[0] * scale) if uniform and scale is not None else "Dynamic",
    }


def family_metadata(facts: Mapping[str, int], prediction_type: str) -> dict[str, str]:
    """The header's strings about the base; none for a width that no known family has."""
    velocity = prediction_type == "v_prediction"
    if (found := FAMILIES.get((facts.get("cross_attention_dim", 0), velocity))) is None:
        return {}
    version, architecture = found
    v2 = str(version.startswith("sd_v2"))
    return {"ss_base_model_version": version, "ss_v2": v2, "modelspec.architecture": architecture}
