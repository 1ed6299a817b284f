"""Adapters in packages of one fixed rank: every adapter has the same lanes in all slots, what is over is zero.

    y = base(x) + ((x @ down) * lora_scale) @ up

alpha / rank of each slot is folded into `up`; `lora_scale` [R] carries the multipliers, one number per lane, and is all
that a slider moves.
"""

from collections.abc import Sequence

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterValueError, RankTooLarge, RequestError
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.runtime.coreml.manifest import Packaged, Port, Shape
from lora_edge.slots import SlotTable

Named = tuple[str, ComponentForms]
"""An adapter's name and what it changes in a component."""

SMALL = 2.0**-8  # a factor below it has numbers below 2**-14, where half precision loses digits


def rank_of(part: ComponentForms, slot: str) -> int:
    """Lanes that an adapter needs on a slot."""
    return sum(form.rank for form in part.slots.get(slot, ()) if isinstance(form, LowRank))


def width_of(part: ComponentForms) -> int:
    """Lanes that an adapter takes everywhere: as many as its largest rank."""
    return max((rank_of(part, slot) for slot in part.slots), default=0)


def check_rank(component: str, parts: Sequence[Named], rank: int) -> None:
    """Refuse adapters that have more lanes together than there are.

    Raises:
        RankTooLarge: with all the numbers.
    """
    widths = [width_of(part) for _, part in parts]
    if sum(widths) > rank:
        told = " and ".join(f"{name} takes {width}" for (name, _), width in zip(parts, widths, strict=True))
        together = f", {sum(widths)} together," if len(parts) > 1 else ""
        raise RankTooLarge(
            f"{component}: {told} lanes{together} where the Core ML packages have {rank}; export with a larger --rank, "
            "use fewer adapters, cut them with `lora-edge resize --rank`, or open the engine with fit_rank=True"
        )


class Bucket:
    """An ordered set of adapters in the lanes of one component's packages (`runtime.layout.Laid`).

    Args:
        packaged: the component.
        table: its slots.
        parts: adapters, one after another; they have lanes alone, on slots of the packages, and fit together.
        rank: R, lanes of the packages.

    Attributes:
        copied: bytes of the arrays that were filled.

    Raises:
        AdapterValueError: numbers beyond what the packages hold.
    """

    def __init__(self, packaged: Packaged, table: SlotTable, parts: Sequence[Named], rank: int) -> None:
        assert packaged.scale is not None, "checked"
        ports = packaged.inputs
        self._scale = ports[packaged.scale]
        self._owners = np.repeat(np.arange(len(parts)), [width_of(part) for _, part in parts])
        self._layers: dict[str, Array] = {}
        starts = np.cumsum([0, *(width_of(part) for _, part in parts)])
        for slot in table:
            if not any(rank_of(part, slot.name) for _, part in parts):
                continue
            down = np.zeros((slot.patch, rank), np.float32)
            up = np.zeros((rank, slot.out_features), np.float32)
            for (_, part), at in zip(parts, starts[:-1].tolist(), strict=True):
                for form in part.slots.get(slot.name, ()):
                    assert isinstance(form, LowRank), "checked"
                    own = slice(at, at := at + form.rank)
                    down[:, own], up[own] = _balanced(form)
            pair = packaged.slots[slot.name]
            for port, array, shape in ((pair.down, down, pair.down_shape), (pair.up, up, pair.up_shape)):
                self._layers[port] = _held(array, shape, ports[port], slot.name)
        self.copied = self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that multipliers leave alone."""
        return sum(array.nbytes for array in self._layers.values())

    @property
    def resting(self) -> dict[str, Array]:
        """Input name -> array in the type and shape of the package; slots that no adapter touches are left out."""
        return dict(self._layers)

    def moving(self, strengths: FloatArray | float) -> dict[str, Array]:
        """`lora_scale` [R]; lanes without an adapter have 0.

        Args:
            strengths: [rows or 1, adapters, 1] float32, alike in all rows, or one number.

        Raises:
            RequestError: rows differ, or a number is beyond what the package holds.
        """
        strengths = np.atleast_3d(np.asarray(strengths, np.float32))
        if (strengths != strengths[:1]).any():
            raise RequestError(
                "a Core ML package takes one multiplier per adapter for a whole run: give every row the same, or let "
                "`generate` run the images apart"
            )
        scale = np.zeros(self._scale.shape, self._scale.dtype)
        with np.errstate(over="ignore"):
            scale[: len(self._owners)] = strengths[0, self._owners, 0]
        if not np.isfinite(scale).all():
            largest = float(np.abs(strengths).max())
            raise RequestError(f"multiplier {largest:g} is beyond what the package holds in {scale.dtype}")
        return {self._scale.name: scale}


def _balanced(form: LowRank) -> tuple[FloatArray, FloatArray]:
    """down and scale * up; where up is so small that half precision would lose digits of it, with a power of two moved
    to it from down, which leaves the product what it is."""
    up = form.up * np.float32(form.scale)
    largest_down, largest_up = (float(np.abs(array).max(initial=0.0)) for array in (form.down, up))
    if not 0 < largest_up < min(SMALL, largest_down):
        return form.down, up
    shift = int((np.log2(largest_down) - np.log2(largest_up)) // 2)
    return np.ldexp(form.down, -shift), np.ldexp(up, shift)


def _held(array: FloatArray, shape: Shape, port: Port, slot: str) -> Array:
    """A matrix as the package takes it: as it is, or transposed into the weight of a convolution."""
    laid = array if len(shape) == 2 else array.T
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(laid.reshape(shape), port.dtype)
    if not np.isfinite(made).all():
        largest = float(np.abs(array).max())
        raise AdapterValueError(
            f"{port.dtype} cannot hold {port.name} of {slot}, whose largest number is {largest:.3g}; "
            "export with --precision fp32, or use the backend onnxruntime"
        )
    return made
