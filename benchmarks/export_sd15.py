"""Question: how long does exporting a model of Stable Diffusion 1.5's size take, and how much memory?

Method: UNet (860 M parameters), text encoder (123 M) and VAE (84 M) of SD 1.5's configuration with random weights,
written as a diffusers folder, exported by `lora-edge export` in a process of its own; wall time, CPU time of all
threads and peak resident size are that process's. The weights are random, which changes none of them.
Result: export_sd15.json in the folder of the machine, below benchmarks/results, and the README.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.harness import folder_of, machine

UNET = {"sample_size": 64, "cross_attention_dim": 768}  # the rest are diffusers' defaults, which are SD 1.5's
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def write_model(folder: Path) -> None:
    """A diffusers folder of SD 1.5's sizes in fp16, as such models are published."""
    torch.manual_seed(0)
    makers = {
        "unet": lambda: UNet2DConditionModel(**UNET),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT)),
        "vae": lambda: AutoencoderKL(**VAE),
    }
    for name, make in makers.items():
        make().half().save_pretrained(folder / name)
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sd15"), help="where model and bundle are written")
    work = parser.parse_args().work
    model, bundle = work / "model", work / "bundle"
    if not (model / "scheduler").is_dir():
        write_model(model)
    start = time.perf_counter()
    command = [sys.executable, "-m", "lora_edge", "export", str(model), str(bundle), "--force", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    said = json.loads(done.stdout)
    result = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_bytes": peak,
        "bundle_bytes": said["bytes"],
        "slots": said["slots"],
        "largest_relative_error": max(row["relative"] for row in said["verification"]),
        "machine": machine(),
    }
    out = Path(__file__).parent / "results" / folder_of(machine()) / "export_sd15.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
