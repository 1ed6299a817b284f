"""The main job: every style on every prompt from one open bundle, as a contact sheet, with the figures that matter.

Run by `make demo`. Rows are prompts, the last one with a character that the base does not know, an adapter too; columns
are no style, each style at 0.5 and at 1, a mix of two, and one negative multiplier. All of it runs in sessions that are
opened once: a column is other input tensors.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from tqdm import tqdm

import lora_edge
from lora_edge.library import Library
from lora_edge.runtime.image import save_png
from lora_edge.runtime.sheet import contact_sheet

ROOT = Path(__file__).parent.parent
EMOJI = ROOT / "examples" / "emoji"


def columns(styles: list[str]) -> list[tuple[str, str]]:
    """Caption and tags of each column."""
    alone = [(f"{style} {m}", f"<lora:{style}:{m}>") for style in styles for m in (0.5, 1)]
    first, second = styles[:2]
    mix = (f"{first} 0.6 + {second} 0.4", f"<lora:{first}:0.6><lora:{second}:0.4>")
    return [("no adapter", ""), *alone, mix, (f"{first} -0.5", f"<lora:{first}:-0.5>")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "demo" / "emoji")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "contact-sheet.png")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    told = json.loads((EMOJI / "prompts.json").read_text(encoding="utf-8"))

    start = time.perf_counter()
    engine = lora_edge.Engine.open(arguments.bundle, lora_dir=EMOJI / "styles")
    engine.generate(told["prompts"][0]["prompt"], steps=1, seed=0)
    opened = time.perf_counter() - start

    styles = told["styles"]
    heads = columns(styles)
    steps: list[float] = []
    rows = []
    subject = told["subject"]
    taught = {"prompt": f"{subject['prompt']} <lora:{subject['name']}:1>", "seed": subject["seed"]}
    for item in tqdm([*told["prompts"], taught], desc="drawing", unit="prompt"):
        images = []
        for _, tags in heads:
            start = time.perf_counter()
            images += engine.generate(f"{item['prompt']} {tags}".strip(), seed=item["seed"], steps=arguments.steps)
            steps.append((time.perf_counter() - start) / arguments.steps)
        rows.append((item["prompt"], images))
    sheet = contact_sheet([caption for caption, _ in heads], rows)
    save_png(sheet, arguments.out)

    print(f"{arguments.out}: {len(rows)} prompts x {len(heads)} styles")
    print(f"open, first step included {opened:8.2f} s")
    print(f"a step (with guidance)    {statistics.median(steps) * 1e3:8.1f} ms, encoding and decoding included")
    swap = swap_time(engine, styles) * 1e3
    print(f"a swap of style           {swap:8.2f} ms, adapters resident, text encoder and UNet")
    print(f"sessions opened           {engine.info['sessions_opened']:8d}, all of them before the first style")
    print(f"adapters used             {', '.join(Library(EMOJI / 'styles').names())}")


def swap_time(engine: lora_edge.Engine, styles: list[str], rounds: int = 30) -> float:
    """Median seconds from naming another resident style to having its graph inputs."""
    adapters = [engine.load_adapter(EMOJI / "styles" / f"{style}.safetensors") for style in styles]
    times = []
    for turn in range(rounds):
        chosen = [(adapters[turn % len(adapters)], 0.8)]
        start = time.perf_counter()
        for component in ("text_encoder", "unet"):
            engine.feeds(component, chosen)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
