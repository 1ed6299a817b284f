"""Pictures from the demo model with plain diffusers, for judging it; adapters are added to the weights.

This is the slow, obvious way, on purpose: it shares no code with lora-edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

STEPS, GUIDANCE = 20, 4.0


def load(model: Path):
    """The pipeline in single precision, without its progress bars."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe, prompts: Sequence[str], seed: int = 0, batch: int = 24) -> np.ndarray:
    """Prompts -> [n, 64, 64, 3] in [0, 1]; the i-th picture starts from seed + i."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        pictures.append(
            pipe(
                part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np"
            ).images
        )
    return np.concatenate(pictures).astype(np.float32)


def spellings(pipe) -> Iterator[tuple[torch.nn.Module, list[tuple[str, str, str]]]]:
    """Every layer with its names in the three formats: keys of the down matrix, the up matrix and alpha."""
    for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te")):
        for path, module in getattr(pipe, part).named_modules():
            if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                continue
            full = path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"
            flat = f"{prefix}_{full.replace('.', '_')}"
            dotted = [f"{part}.{path}", *([f"base_model.model.{path}"] if part == "unet" else [])]
            yield (
                module,
                [
                    (f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"),
                    *((f"{name}.lora_A.weight", f"{name}.lora_B.weight", "") for name in dotted),
                ],
            )


@contextmanager
def adapter(pipe, path: Path, multiplier: float) -> Iterator[int]:
    """Adds the adapter for the time of a `with` block, which gets the number of layers that it changed."""
    tensors, changed, used = load_file(path), [], set()
    for module, names in spellings(pipe):
        for down, up, alpha in names:
            if down not in tensors:
                continue
            a, b = tensors[down].float(), tensors[up].float()
            scale = multiplier * float(tensors.get(alpha, len(a))) / len(a)
            changed.append((module.weight, module.weight.data.clone()))
            module.weight.data += scale * (b.flatten(1) @ a.flatten(1)).view_as(module.weight)
            used |= {down, up, alpha} & tensors.keys()
    if used != tensors.keys():
        raise ValueError(f"{path}: {len(tensors.keys() - used)} tensors belong to no layer")
    try:
        yield len(changed)
    finally:
        for weight, original in changed:
            weight.data = original
