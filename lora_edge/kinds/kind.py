"""What a kind is, and what it is given: everything about one layer of one file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch, BaseNeeded
from lora_edge.forms import Form, NormDelta

Shapes = Mapping[str, tuple[int, ...]]  # leaf -> shape
Layer = tuple[int, ...]  # shape of a layer's weight: [out, in], [out, in, kh, kw], or [channels] of a norm


@dataclass(frozen=True)
class Size:
    """What the forms of one layer will take at most, known before any tensor is read.

    Attributes:
        lanes: of its LowRanks together.
        values: numbers of its gains, biases and norm deltas together.
        full: the kind has no smaller form than one lane per row or column of the layer's own weight.
    """

    lanes: int = 0
    values: int = 0
    full: bool = False

    def nbytes(self, layer: Layer) -> int:
        """Bytes as float32."""
        return 4 * (self.lanes * (layer[0] + math.prod(layer[1:])) + self.values)


@dataclass(frozen=True)
class Update:
    """The tensors of a file that belong to one layer.

    Attributes:
        name: the layer as the file names it, for messages.
        shape: of the layer's weight: [out, in], [out, in, kh, kw], or [channels] of a norm.
        tensors: leaf -> array in the shape that the file has it, float32, all finite.
        config_scale: rank, or None for the settings' own -> scale by a PEFT config; None without a config.
        feedforward: whether a PEFT config counts the layer among its feed-forward layers, None where it says nothing.
        has_bias: whether the layer has a bias of its own.
        base_weight: reads the layer's own weight, float32, as `shape` has it; None where there is no base.
        base_bias: reads its bias [out] float32, None where it has none.
    """

    name: str
    shape: Layer
    tensors: Mapping[str, Array]
    config_scale: Callable[[int | None], float] | None = None
    feedforward: bool | None = None
    has_bias: bool = True
    base_weight: Callable[[], FloatArray] | None = None
    base_bias: Callable[[], FloatArray | None] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {leaf: tensor.shape for leaf, tensor in self.tensors.items()}

    def weight(self, kind: str) -> FloatArray:
        """The layer's own weight, for a kind whose change depends on it.

        Raises:
            BaseNeeded: there is no base to read it from.
        """
        if self.base_weight is None:
            raise BaseNeeded(f"is of the kind {kind}, which needs the weights of the base: {_WITH_A_BASE}")
        return self.base_weight()

    def bias(self, kind: str) -> FloatArray | None:
        """The layer's own bias, None where it has none. Raises as `weight`."""
        if not self.has_bias:
            return None
        if self.base_bias is None:
            raise BaseNeeded(f"is of the kind {kind}, which needs the biases of the base: {_WITH_A_BASE}")
        return self.base_bias()


_WITH_A_BASE = "open it with a bundle, or export the bundle again"


@dataclass(frozen=True)
class Kind:
    """The mathematics of a file.

    Attributes:
        name: such as "lora".
        spellings: leaf -> how files spell it after the module's name; `*` stands for one adapter name.
        signature: leaves of which any one identifies the kind.
        size: shapes and the layer -> what the forms will take; raises AdapterMismatch where they contradict each other.
        form: reduces the tensors of one layer to forms; raises as `size`, which it asks first.
        rank: shapes -> the rank that a person would name, None where the kind has none.
        tells: shapes -> whether the kind is this one, where another shares its leaves.
    """

    name: str
    spellings: Mapping[str, tuple[str, ...]]
    signature: frozenset[str]
    form: Callable[[Update], tuple[Form, ...] | NormDelta]
    size: Callable[[Shapes, Layer], Size] = field(default=lambda shapes, layer: Size())
    rank: Callable[[Shapes], int | None] = lambda shapes: None
    tells: Callable[[Shapes], bool] = lambda shapes: True


def parameters(*leaves: str) -> dict[str, tuple[str, ...]]:
    """Spellings of bare parameters: as LyCORIS writes them, and with PEFT's adapter name or `.weight` after them."""
    return {leaf: (leaf, f"{leaf}.*", f"{leaf}.*.weight") for leaf in leaves}


def need(shapes: Shapes, *leaves: str) -> None:
    """Refuse where one of the leaves is missing.

    Raises:
        AdapterMismatch: the file lacks it.
    """
    for leaf in leaves:
        if leaf not in shapes:
            raise AdapterMismatch(f"has {' and '.join(sorted(shapes))} but no {leaf}")


def weight_only(layer: Layer) -> None:
    """Refuse a norm. Raises AdapterMismatch."""
    if len(layer) < 2:
        raise AdapterMismatch("is a norm, which has no low-rank update")


def expect(shapes: Shapes, leaf: str, wanted: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than wanted, but for axes that carry nothing.

    Files give a Linear layer 1x1 kernels and a 1x1 Conv none, according to the trainer's own model, and may have all
    axes after the first in one.

    Raises:
        AdapterMismatch: it has another.
    """
    shape = shapes[leaf]
    tail, wanted_tail = ([axis for axis in axes[1:] if axis != 1] for axes in (shape, wanted))
    if shape[:1] != wanted[:1] or (tail != wanted_tail and shape[1:] != (math.prod(wanted[1:]),)):
        raise AdapterMismatch(f"has {leaf} {list(shape)} where the layer and its rank need {list(wanted)}")


def vector(shapes: Shapes, leaf: str, length: int) -> None:
    """Refuse a tensor that is not `length` numbers along one axis. Raises AdapterMismatch."""
    if [axis for axis in shapes[leaf] if axis != 1] != [length] * (length != 1) or not shapes[leaf]:
        raise AdapterMismatch(f"has {leaf} {list(shapes[leaf])} where the layer has {length} channels")
