"""Question: what does it cost that every image of a batch has an adapter of its own, and what does a slider move?

Method: one bundle, opened once; four random LoRAs of rank 16 on attention and feed-forward layers of UNet and text
encoder. A step of the UNet with four rows is run without adapters, with one adapter for all rows, and with another
adapter for each row; the three take turns, and what counts is the median of each and its ratio to the first. Then 21
multipliers are set one after another, and the engine tells the bytes that each change copied.
Result: benchmarks/results/adapters_per_image.<bundle>.json, and the README.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tqdm import trange

import lora_edge
from lora_edge.adapter import Adapter
from lora_edge.slots import SlotTable

ROWS = 4
RANK = 16
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "q_proj", "k_proj", "v_proj", "out_proj")
Pairs = Sequence[tuple[Adapter, Any]]


def write_adapter(path: Path, tables: Sequence[SlotTable], seed: int) -> Path:
    """A LoRA in diffusers names on every layer of LAYERS, small enough that nothing overflows."""
    random = np.random.default_rng(seed)
    tensors = {}
    for table in tables:
        for slot in table:
            if slot.name.endswith(LAYERS) and slot.kernel is None:
                name = f"{table.component}.{slot.name}"
                tensors[f"{name}.lora_A.weight"] = random.standard_normal((RANK, slot.in_features), np.float32) * 0.01
                tensors[f"{name}.lora_B.weight"] = random.standard_normal((slot.out_features, RANK), np.float32) * 0.01
    save_file(tensors, path)
    return path


def step_times(engine: lora_edge.Engine, cases: dict[str, Pairs], latents: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a UNet step with ROWS rows, case by case in turns, after one round that does not count."""
    config = engine.bundle.component("unet").config
    random = np.random.default_rng(0)
    inputs = {
        "sample": random.standard_normal((ROWS, config["in_channels"], latents, latents), np.float32),
        "timestep": 500,
        "encoder_hidden_states": random.standard_normal((ROWS, 77, config["cross_attention_dim"]), np.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in trange(rounds + 1, desc="steps in turns"):
        for name, adapters in cases.items():
            start = time.perf_counter()
            engine.run("unet", inputs, adapters)
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def bytes_moved(engine: lora_edge.Engine, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Bytes copied by each of 21 multipliers, of one adapter and in a mix of two, and what they are beside."""
    made: dict[str, Any] = {}
    for name, others in (("one adapter", []), ("beside another", [(adapters[1], 0.5)])):
        engine.feeds("unet", [(adapters[0], 1.0), *others])
        most, seconds = 0, []
        for multiplier in np.linspace(-1, 1, 21):
            start = time.perf_counter()
            engine.feeds("unet", [(adapters[0], float(multiplier)), *others])
            seconds.append(time.perf_counter() - start)
            most = max(most, engine.info["bytes_copied"]["unet"])
        made[name] = {"most_bytes": most, "median_ms": round(statistics.median(seconds) * 1e3, 4)}
    made["adapter_bytes"] = adapters[0].components["unet"].nbytes
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("demo/emoji"))
    parser.add_argument("--latents", type=int, help="side of the latents; the model's own if not given")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="of one run; 0 takes one per physical core")
    arguments = parser.parse_args()
    engine = lora_edge.Engine.open(arguments.bundle, threads=arguments.threads)
    size = arguments.latents or engine.bundle.component("unet").config["sample_size"]
    folder = Path("build/adapters_per_image")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [write_adapter(folder / f"{seed}.safetensors", engine.bundle.tables, seed) for seed in range(ROWS)]
    adapters = [engine.load_adapter(path) for path in paths]
    own = [(adapter, [float(row == image) for row in range(ROWS)]) for image, adapter in enumerate(adapters)]
    cases: dict[str, Pairs] = {"no adapter": [], "one for all": [(adapters[0], 1.0)], "one for each": own}
    times = step_times(engine, cases, size, arguments.rounds)
    base = statistics.median(times["no adapter"])
    result = {
        "bundle": engine.bundle.name,
        "rows": ROWS,
        "rank": RANK,
        "latents": size,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "step": {
            name: {
                "median_ms": round(statistics.median(seconds) * 1e3, 1),
                "quartiles_ms": [round(value * 1e3, 1) for value in np.quantile(seconds, [0.25, 0.75])],
                "ratio": round(statistics.median(seconds) / base, 3),
            }
            for name, seconds in times.items()
        },
        "change": bytes_moved(engine, adapters),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    out = Path(__file__).parent / "results" / f"adapters_per_image.{engine.bundle.name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
