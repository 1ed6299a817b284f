"""A component's exported program with its ports and its weights, checked; torch is not needed for it.

The manifest of a bundle says of each component, beside what it says of the ONNX graph:

    "program": {
      "inputs": {"sample": {"shape": ["rows", 4, "height", "width"], "dtype": "float32"}, …},
      "outputs": ["out_sample"],
      "tensors": {"<parameter>": {"offset": bytes, "dtype": "F32", "shape": […], "transposed": false}, …}
    }

The program is `model.pt2` beside the ONNX graph, and the tensors lie in that graph's data file, as torch has them or, a
matrix, transposed. Tensors that are not named here lie in the `.pt2` itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.bundle import Bundle, Component
from lora_edge.errors import BundleDamaged, ComponentMissing
from lora_edge.graph import GraphInput
from lora_edge.graphweights import DTYPES
from lora_edge.runtime.programfile import Program, read_program
from lora_edge.scope import norm_ports
from lora_edge.slots import RANKS, SCALES, TOKENS, SlotTable

FILE, DATA = "model.pt2", "model.onnx.data"
EMBEDDING = "text_model.embeddings.token_embedding.weight"
INPUT_DTYPES = ("float32", "int64")


@dataclass(frozen=True)
class Parts:
    """What a backend needs to run a component.

    Attributes:
        program: its calls.
        inputs: what must be given, in the program's order.
        outputs: names, in the program's order.
        table: its slots.
        tensors: name -> array in torch's layout; views of the file, mapped, changes of which would stay in memory.
    """

    program: Program
    inputs: Mapping[str, GraphInput]
    outputs: tuple[str, ...]
    table: SlotTable
    tensors: Mapping[str, Array]

    @property
    def optional(self) -> dict[str, GraphInput]:
        """The adapter inputs of the graph contract that the component has."""
        number = np.dtype(np.float32)
        made: dict[str, GraphInput] = {}
        for slot in self.table:
            made |= {slot.port(leaf): GraphInput(shape, number) for leaf, shape in slot.axes.items()}
        for norm, channels in self.table.norms.items():
            made |= {name: GraphInput((channels,), number) for name in norm_ports([norm])}
        if len(self.table):
            made[SCALES] = GraphInput(("scale_rows", "total_rank"), number)
            made[RANKS] = GraphInput((len(self.table),), np.dtype(np.int64))
        if (embedding := self.tensors.get(EMBEDDING)) is not None:
            made[TOKENS] = GraphInput(("tokens_added", embedding.shape[1]), number)
        return made


def open_parts(graph: Path, entry: Mapping[str, Any], table: SlotTable) -> Parts:
    """Read the program beside an ONNX graph.

    Args:
        graph: the ONNX file of the component.
        entry: what the manifest says of its program.
        table: its slots.

    Raises:
        BundleDamaged: a file is missing, or the entry, the program and the weights do not fit together.
        BundleVersionError: see `read_program`.
    """
    program = read_program(graph.with_name(FILE))
    try:
        inputs = {str(name): _port(told) for name, told in entry["inputs"].items()}
        outputs = tuple(str(name) for name in entry["outputs"])
        placed = _placed(graph.with_name(DATA), entry["tensors"]) | dict(program.held)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleDamaged(
            f"the manifest lacks or misspells an entry of the program {program.path}: {error!r}; export it again"
        ) from error
    if tuple(inputs) != program.inputs or len(outputs) != len(program.outputs):
        raise BundleDamaged(
            f"{program.path} takes {', '.join(program.inputs)} and makes {len(program.outputs)} outputs, where the "
            f"manifest says {', '.join(inputs)} and {len(outputs)}; export it again"
        )
    wanted = set(program.tensors.values())
    if missing := wanted - placed.keys():
        raise BundleDamaged(f"nothing says where {min(missing)} of {program.path} lies; export it again")
    for slot in table:
        found = placed[f"{slot.name}.weight"].shape if f"{slot.name}.weight" in wanted else None
        if found != slot.weight_shape:
            raise BundleDamaged(
                f"{program.path} has the weight of {slot.name} as {found}, where the slot is {slot.weight_shape}; "
                "export it again"
            )
    if EMBEDDING in wanted and placed[EMBEDDING].ndim != 2:
        raise BundleDamaged(f"{EMBEDDING} of {program.path} is no table of rows; export it again")
    return Parts(program, inputs, outputs, table, {name: placed[name] for name in wanted})


def program_of(bundle: Bundle, component: Component) -> Mapping[str, Any]:
    """What the manifest says of a component's program.

    Raises:
        ComponentMissing: the bundle was exported without programs.
    """
    told: Mapping[str, Any] | None = bundle.manifest["components"][component.name].get("program")
    if told is None:
        raise ComponentMissing(
            f"{bundle.folder} has no program of its {component.name} for the backend torch: export it again with "
            "--target torch"
        )
    return told


def _port(told: Mapping[str, Any]) -> GraphInput:
    if told["dtype"] not in INPUT_DTYPES:
        raise ValueError(f"dtype {told['dtype']!r}")
    shape = tuple(axis if isinstance(axis, str) else int(axis) for axis in told["shape"])
    return GraphInput(shape, np.dtype(told["dtype"]))


def _placed(file: Path, places: Mapping[str, Any]) -> dict[str, Array]:
    if not places:
        return {}
    if not file.is_file():
        raise BundleDamaged(f"{file}, where the weights should lie, is missing; copy the bundle again")
    held = np.memmap(file, np.uint8, mode="c")
    return {name: _tensor(held, name, place, file) for name, place in places.items()}


def _tensor(held: Array, name: str, place: Mapping[str, Any], file: Path) -> Array:
    dtype, start = DTYPES[place["dtype"]], int(place["offset"])
    shape = tuple(int(size) for size in place["shape"])
    end = start + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or not 0 <= start <= end <= len(held):
        raise BundleDamaged(
            f"{name} should lie at bytes {start} to {end} of {file}, which has {len(held)}; export it again"
        )
    lies = held[start:end].view(dtype).reshape(shape)
    return lies.T if place.get("transposed") else lies
