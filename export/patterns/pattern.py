"""What a pattern is: how one layer and its update are written down in ONNX operators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.export.constants import Constants
from lora_edge.export.patterns.lanes import Lanes
from lora_edge.slots import Slot

LAST = "lora_edge.last"
"""Marks an Add of a layer and its update: what else is added to the layer may be added before, see
`export.passes.add_updates_last`."""

PIECES = "lora_edge.pieces"
"""Marks a Concat of the pieces that its user will cut it in, see `export.passes.join_cuts`."""

LATE = "lora_edge.late"
"""Marks a node that what follows does along with its own work: what it takes is held, not its result, see
`export.parts`."""


@dataclass
class Layer:
    """One layer found in the plain graph."""

    slot: Slot
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def last(self) -> ir.Node:
        return self.nodes[-1]

    @property
    def pieces(self) -> int:
        """In how many equal pieces the result is cut along its features, if that is all that is done with it."""
        users = self.result.consumers()
        if len(users) != 1 or users[0].op_type != "Split" or not self.result.shape:
            return 1
        widths = {value.shape[-1] for value in users[0].outputs if value.shape}
        return len(users[0].outputs) if widths == {self.slot.out_features // len(users[0].outputs)} else 1

    @property
    def has_positions(self) -> bool:
        """Whether x is [rows, positions, in]; a time embedding's is [rows, in]."""
        return len(self.x.shape or ()) == 3

    def transposed(self) -> ir.Value:
        """The weight of a Linear as [in, out], which is how onnxruntime multiplies; written when the file is."""
        held = self.weight.const_value
        assert held is not None
        out_features, in_features = held.shape

        def turned() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(held.numpy().T), name=self.weight.name)

        shape = ir.Shape([in_features, out_features])
        self.weight.const_value = ir.LazyTensor(turned, dtype=held.dtype, shape=shape, name=self.weight.name)
        self.weight.shape = shape
        return self.weight


@dataclass(frozen=True)
class Site:
    """Where a pattern is written.

    Attributes:
        tape: takes the nodes.
        layer: the plain layer.
        inputs: leaf -> the slot's graph input.
        lanes: the slot's scales, and shapes that depend on its rank.
        constant: makes small constants.
    """

    tape: Tape
    layer: Layer
    inputs: Mapping[str, ir.Value]
    lanes: Lanes
    constant: Constants

    def matrix(self) -> ir.Value:
        """The weight of a Linear or a 1x1 Conv as [in, out]; a Conv's lies in the file as it is."""
        slot = self.layer.slot
        if slot.kernel is None:
            return self.layer.transposed()
        flat = self.tape.op("Reshape", [self.layer.weight, self.constant(slot.out_features, slot.in_features)])
        return self.tape.op("Transpose", [flat], {"perm": [1, 0]})


Pattern = Callable[[Site], ir.Value]
"""Writes the layer at a site and returns its result."""
