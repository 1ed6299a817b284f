"""What a kind is, and what it is given: everything about one layer of one file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lora_edge.arrays import Array, FloatArray
from lora_edge.errors import AdapterMismatch
from lora_edge.forms import Form, NormDelta

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Update:
    """The tensors of a file that belong to one layer.

    Attributes:
        name: the layer as the file names it, for messages.
        shape: of the layer's weight: [out, in], [out, in, kh, kw], or [channels] of a norm.
        tensors: leaf -> array as the file has it, float32 or int64, all finite.
        config_scale: rank -> scale by a PEFT config, None where the file comes without one.
        base_weight: reads the layer's own weight, float32, for kinds that need it; None where there is no base.
    """

    name: str
    shape: tuple[int, ...]
    tensors: Mapping[str, Array]
    config_scale: Callable[[int], float] | None = None
    base_weight: Callable[[], FloatArray] | None = None

    def tensor(self, leaf: str) -> Array:
        """A tensor that the kind cannot do without.

        Raises:
            AdapterMismatch: the file lacks it.
        """
        if leaf not in self.tensors:
            raise AdapterMismatch(f"has {' and '.join(sorted(self.tensors))} but no {leaf}")
        return self.tensors[leaf]


@dataclass(frozen=True)
class Kind:
    """The mathematics of a file.

    Attributes:
        name: such as "lora".
        spellings: leaf -> how files spell it after the module's name; `*` stands for one adapter name.
        signature: leaves of which any one identifies the kind.
        form: reduces the tensors of one layer to forms; raises AdapterMismatch where they contradict the layer.
        rank: shapes by leaf -> the rank that a person would name, None where the kind has none.
    """

    name: str
    spellings: Mapping[str, tuple[str, ...]]
    signature: frozenset[str]
    form: Callable[[Update], tuple[Form, ...] | NormDelta]
    rank: Callable[[Shapes], int | None] = lambda shapes: None
