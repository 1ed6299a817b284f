"""Small constants of a graph, each stored once."""

import numpy as np
import onnx_ir as ir

from lora_edge.arrays import Array


class Constants:
    """Makes initializers on demand; an equal one that is already there is taken."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def __call__(self, *numbers: int) -> ir.Value:
        """[n] int64, for axes and shapes."""
        return self._stored("const." + ".".join(map(str, numbers)), np.array(numbers, dtype=np.int64))

    def scalar(self, number: int) -> ir.Value:
        """One int64 without axes."""
        return self._stored(f"const.scalar.{number}", np.array(number, dtype=np.int64))

    def zeros(self, *shape: int) -> ir.Value:
        """float32 zeros."""
        return self._stored("const.zeros." + ".".join(map(str, shape)), np.zeros(shape, dtype=np.float32))

    def floats(self, name: str, array: Array) -> ir.Value:
        """A small float32 array, by a name of its own."""
        return self._stored(f"const.{name}", array)

    def _stored(self, name: str, array: Array) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            self._graph.initializers.add(value)
        return self._graph.initializers[name]
