"""What the Mac checklist feeds to packages, compares and times; `mac_check.py` runs it.

What is expected comes from `mil-reference`, which computes the same packages in numpy. Nothing here imports Core ML, so
that it can be tried on any machine with another runner in Core ML's place.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.arrays import Array
from lora_edge.errors import LoraEdgeError
from lora_edge.runtime.coreml.graph import Runner
from lora_edge.runtime.coreml.manifest import Packaged, Packages, Port

OpenPackage = Callable[[Path], Runner]
Feeds = dict[str, Array]
Line = dict[str, Any]

ALLOWED = 0.02  # of the largest number of an output: half precision, summed in another order
ALLOWED_OF_EFFECT = 0.05  # of the largest change that the adapters make
TOKENS = 400  # ids below it are in every vocabulary
LANES = 8  # of each adapter
# Noise of full strength is no picture's latents: squares in a decoder's norms can leave the numbers of half precision.
STRENGTHS = {"z": 0.2}


@dataclass(frozen=True)
class Case:
    """One run of a component.

    Attributes:
        name: for the report.
        proves: what is known when it passes.
        feeds: by input.
    """

    name: str
    proves: str
    feeds: Feeds


def plain_feeds(packaged: Packaged, random: np.random.Generator) -> Feeds:
    """An array for every input that must be given."""
    return {name: _array(port, random) for name, port in packaged.inputs.items() if not port.optional}


def cases(packaged: Packaged, random: np.random.Generator) -> list[Case]:
    """The base first; adapters only where the component takes any."""
    plain = plain_feeds(packaged, random)
    made = [Case("base", "it loads and computes; inputs of adapters may be left out", plain)]
    if packaged.scale is None:
        return made
    zeros = {name: np.zeros(port.shape, port.dtype) for name, port in packaged.adapter_inputs.items()}
    one = lanes(packaged, [0.8], random)
    two = lanes(packaged, [0.8, -0.5], random)
    slid = one | {packaged.scale: -one[packaged.scale]}
    return [
        *made,
        Case("zeros", "explicit zeros do what the defaults do", plain | zeros),
        Case("one adapter", "adapters act as inputs", plain | one),
        Case("another multiplier", "a slider moves lora_scale alone", plain | slid),
        Case("two adapters", "a mix with two multipliers", plain | two),
    ]


def lanes(packaged: Packaged, multipliers: Sequence[float], random: np.random.Generator) -> Feeds:
    """Random adapters side by side on every slot, strong enough to stand out of half precision."""
    assert packaged.scale is not None
    ports = packaged.adapter_inputs
    scale = np.zeros(ports[packaged.scale].shape, ports[packaged.scale].dtype)
    width = min(LANES, len(scale) // len(multipliers))
    for owner, multiplier in enumerate(multipliers):
        scale[owner * width : (owner + 1) * width] = multiplier
    made = {packaged.scale: scale}
    for pair in packaged.slots.values():
        features = int(np.prod(pair.down_shape)) // len(scale)
        sizes = {pair.down: features**-0.5, pair.up: 0.3}
        for name, size in sizes.items():
            made[name] = (random.standard_normal(ports[name].shape) * size).astype(ports[name].dtype)
    return made


def run(packaged: Packaged, runners: Sequence[Runner], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of the last package; each is given what it declares of the inputs and of what came before."""
    values = dict(feeds)
    made: Mapping[str, Array] = {}
    for stage, runner in zip(packaged.stages, runners, strict=True):
        made = runner.run({name: values[name] for name in stage.inputs if name in values})
        values |= made
    return dict(made)


def opened(packaged: Packaged, open_package: OpenPackage) -> list[Runner]:
    return [open_package(stage.path) for stage in packaged.stages]


def compare(made: Mapping[str, Array], wanted: Mapping[str, Array], base: Mapping[str, Array] | None) -> Line:
    """The largest error of any output, as a part of its largest number and of the largest effect of the adapters."""
    errors, effects = [], []
    for name, right in wanted.items():
        error = distance(made[name], right) if name in made else float("inf")
        errors.append(error / largest(right))
        if base is not None:
            effects.append(error / (distance(right, base[name]) or np.inf))
    told = {"error": max(errors), "allowed": ALLOWED}
    if base is not None:
        told = {"error_of_effect": max(effects), "allowed": ALLOWED_OF_EFFECT}
    return {**told, "ok": bool(max(effects or errors) <= told["allowed"])}


def distance(one: Array, other: Array) -> float:
    """The largest difference; infinite where a number is none."""
    gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")


def largest(array: Array) -> float:
    return float(np.abs(array.astype(np.float64)).max()) or 1.0


def check(packages: Packages, name: str, units: str, reference: OpenPackage, machine: OpenPackage) -> Iterator[Line]:
    """Every case of a component on one sort of compute units, and then what a step and a swap take."""
    packaged = packages.components[name]
    head = {"component": name, "units": units}
    told = cases(packaged, np.random.default_rng(0))
    start = time.perf_counter()
    try:
        runners = opened(packaged, machine)
    except LoraEdgeError as error:
        yield {**head, "case": "load", "proves": "Core ML loads it", "ok": False, "says": str(error)}
        return
    yield {**head, "case": "load", "proves": "Core ML loads it", "ok": True, "seconds": time.perf_counter() - start}
    right = opened(packaged, reference)
    base = run(packaged, right, told[0].feeds)
    for case in told:
        line: Line = {**head, "case": case.name, "proves": case.proves}
        wanted = run(packaged, right, case.feeds)
        acts = case.name not in ("base", "zeros")
        try:
            yield line | compare(run(packaged, runners, case.feeds), wanted, base if acts else None)
        except LoraEdgeError as error:
            yield line | {"ok": False, "says": str(error)}


def times(packages: Packages, name: str, machine: OpenPackage, rounds: int = 20) -> dict[str, float]:
    """Median seconds of a run without adapters, with the same one again, and with another one each time."""
    packaged = packages.components[name]
    runners, random = opened(packaged, machine), np.random.default_rng(1)
    plain = plain_feeds(packaged, random)
    styles = [lanes(packaged, [0.8], random) for _ in range(2)] if packaged.scale else []
    turns = {"step": [plain]}
    if styles:
        turns |= {"step_with_adapter": [plain | styles[0]], "step_with_swap": [plain | style for style in styles]}
    seconds: dict[str, list[float]] = {turn: [] for turn in turns}
    for at in range(rounds + 1):
        for turn, feeds in turns.items():
            start = time.perf_counter()
            run(packaged, runners, feeds[at % len(feeds)])
            seconds[turn].append(time.perf_counter() - start)
    return {turn: statistics.median(taken[1:]) for turn, taken in seconds.items()}


def plan(tools: Any, compiled: str, units: str) -> dict[str, Any]:
    """Where Core ML means to run the operations of a compiled package: device -> operations, and its part of the cost.

    Args:
        tools: coremltools.
        compiled: a `.mlmodelc` folder.
    """
    from coremltools.models.compute_plan import MLComputePlan

    made = MLComputePlan.load_from_path(path=compiled, compute_units=tools.ComputeUnit[units])
    operations: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for operation in made.model_structure.program.functions["main"].block.operations:
        usage = made.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:  # constants
            continue
        device = type(usage.preferred_compute_device).__name__.removeprefix("ML").removesuffix("ComputeDevice")
        operations[f"{device} {operation.operator_name.split('.')[-1]}"] += 1
        estimate = made.get_estimated_cost_for_mlprogram_operation(operation)
        cost[device] += estimate.weight if estimate else 0.0
    return {"operations": dict(operations), "cost": {device: round(part, 4) for device, part in cost.items()}}


def _array(port: Port, random: np.random.Generator) -> Array:
    if port.name == "input_ids":
        return random.integers(0, TOKENS, port.shape).astype(port.dtype)
    if port.name == "timestep":
        return np.full(port.shape, 981, port.dtype)
    noise = random.standard_normal(port.shape).clip(-3, 3)
    return (noise * STRENGTHS.get(port.name, 1.0)).astype(port.dtype)
