"""Question: is every slot of a Core ML package wired to its own layer, and to no other?

Method: one component of a checkpoint is converted in float32; then each slot in turn gets a random adapter of rank 4
while all others have none, and the saved package, computed by the evaluator in float64, is compared with torch in
float64, where the weight of that one layer is changed. Small latents do: the wiring is the same at every size.
Result: benchmarks/results/coreml_slots.json (one entry a model, component and form), and docs/coreml.md.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_edge.export.checkpoint import Checkpoint, Part
from lora_edge.export.coreml.alone import ALLOWED, each_alone
from lora_edge.export.coreml.convert import convert
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.programs import Program, programs
from lora_edge.export.coreml.verify import Compared
from lora_edge.export.coreml.write import sizes_of
from lora_edge.export.slotted import slot_table
from lora_edge.mil import Package

RESULT = Path(__file__).parent / "results" / "coreml_slots.json"


def program_of(checkpoint: Checkpoint, component: str, options: Options, latent: int | None) -> Program:
    """What is traced of a component: its package with adapter inputs."""
    part: Part = next(part for part in checkpoint.parts if part.recipe.component == component)
    module, recipe = part.load(), part.recipe
    smallest = 2 ** len(part.config.get("block_out_channels", ()))
    table = slot_table(recipe, module, part.config, recipe.example(part.config, 1, smallest))
    del module
    sizes = sizes_of(checkpoint)
    sizes = replace(sizes, latent=(latent, latent)) if latent else sizes
    return next(program for program in programs(part, table, options, sizes) if program.pairs)


def told(program: Program, options: Options, outcomes: Sequence[Compared]) -> dict[str, Any]:
    """The entry of a run: its worst slot, and the weakest effect that was compared."""
    worst = max(outcomes, key=_of_effect)
    return {
        "component": program.component,
        "attention": options.attention,
        "conv_slots": options.conv_slots,
        "inputs": [list(port.shape) for port in program.inputs],
        "slots": len(outcomes),
        "worst": worst.case,
        "error_of_effect": _of_effect(worst),
        "least_effect": min(outcome.effect for outcome in outcomes),
        "allowed": ALLOWED,
    }


def _of_effect(outcome: Compared) -> float:
    """Infinite where a slot can change nothing, as queries of a map of one position: then latents are too small."""
    return outcome.error / outcome.effect if outcome.effect else math.inf


def record(name: str, entry: dict[str, Any]) -> None:
    """Keep an entry among the results."""
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(known | {name: entry}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def run(name: str, program: Program, options: Options) -> dict[str, Any]:
    """Convert, go through all slots, and keep the result."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{program.package}.mlpackage"
        convert(program, options).save(str(path))
        alone = each_alone(program, [Package.open(path)], options)
        outcomes = list(tqdm(alone, total=len(program.pairs), desc=name))
    entry = told(program, options, outcomes)
    record(name, entry)
    return entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("examples/emoji/model"))
    parser.add_argument("--components", nargs="+", default=["unet", "text_encoder"])
    parser.add_argument("--attention", nargs="+", default=["original", "split-einsum"])
    parser.add_argument(
        "--latent", type=int, help="side of the latents, 16 at least for SD 1.5's depth; the model's own if not given"
    )
    parser.add_argument("--name", help="of the model among the results; its folder's if not given")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.open(arguments.checkpoint)
    failed = 0
    for component in arguments.components:
        for attention in arguments.attention if component == "unet" else ["original"]:
            for conv_slots in (False, True) if component == "unet" else (False,):
                options = Options(rank=16, precision="fp32", attention=attention, conv_slots=conv_slots)
                program = program_of(checkpoint, component, options, arguments.latent)
                name = arguments.name or arguments.checkpoint.resolve().parent.name
                name = f"{name}, {component}, {attention}{', conv slots' * conv_slots}"
                entry = run(name, program, options)
                failed += entry["error_of_effect"] > entry["allowed"]
                print(json.dumps(entry))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
