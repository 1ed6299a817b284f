"""LoRA and LoCon: dW = scale * up @ down, for a Conv over its unfolded patches (Hu et al. 2021; kohya, LyCORIS).

A Conv's `down` has the layer's kernel and `up` is 1x1. With `mid` (Tucker, LyCORIS functional/locon.py) `down` is 1x1
as well and the kernel lies between: dW[o,i,h,w] = scale * sum_pq up[o,p] mid[p,q,h,w] down[q,i]. DyLoRA and LoRA-FA
files are of this kind too.
"""

from lora_edge.errors import AdapterMismatch
from lora_edge.forms import LowRank
from lora_edge.kinds.factors import flat, laid_out, lowrank, transposed, tucker
from lora_edge.kinds.kind import Kind, Layer, Shapes, Size, Update, expect, need, weight_only
from lora_edge.kinds.scale import SCALE_LEAVES, scale_of

DOWN = (
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.*.weight",
    "lora.down.weight",
    "lora_linear_layer.down.weight",
    "down.weight",
)
UP = (
    "lora_up.weight",
    "lora_B.weight",
    "lora_B.*.weight",
    "lora.up.weight",
    "lora_linear_layer.up.weight",
    "up.weight",
)


def size(shapes: Shapes, layer: Layer) -> Size:
    """The lanes of the file.

    Raises:
        AdapterMismatch: a factor is missing, or its shape is not the layer's.
    """
    need(shapes, "down", "up")
    lanes = shapes["down"][0] if shapes["down"] else 0
    if lanes == 0:
        raise AdapterMismatch(f"has a down of shape {list(shapes['down'])}, which has no rank")
    weight_only(layer)
    if "mid" not in shapes:
        expect(shapes, "down", (lanes, *layer[1:]))
        expect(shapes, "up", (layer[0], lanes))
        return Size(lanes)
    core, down = shapes["mid"], shapes["down"]
    if len(core) != 4 or core[0] == 0 or core[1:] != (lanes, *layer[2:]) or len(down) < 2:
        raise AdapterMismatch(f"has a mid of shape {list(core)} that does not follow its down {list(down)}")
    expect(shapes, "down", (lanes, layer[1]))
    expect(shapes, "up", (layer[0], core[0]))
    return Size(min(core[0], layer[0]))


def form(update: Update) -> tuple[LowRank, ...]:
    """One LowRank. Raises as `size`."""
    size(update.shapes, update.shape)
    down, up = update.tensors["down"], update.tensors["up"]
    scale = scale_of(update, len(down))
    if "mid" not in update.tensors:
        return (laid_out((transposed(down, len(down)), transposed(up, len(up))), scale),)
    pair = tucker(update.tensors["mid"], flat(down, len(down)), transposed(up, len(up)))
    return (lowrank(pair, scale),)


def rank(shapes: Shapes) -> int | None:
    """Rows of `down`."""
    return shapes["down"][0] if shapes.get("down") else None


LORA = Kind(
    name="lora",
    spellings={"down": DOWN, "up": UP, "mid": ("lora_mid.weight",), **SCALE_LEAVES},
    signature=frozenset({"down", "up"}),
    form=form,
    size=size,
    rank=rank,
)
