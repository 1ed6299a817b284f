"""Tells apart words that the model mixes up: `python mend_words.py car cap --work WORK`, before `train_base.py save`.

Only the words' own embeddings are trained, on pictures of the concepts that they name. Nothing else changes, so what
was measured of other words stays true, and adapters fit as before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from captions import caption, scenes
from diffusers import AutoencoderKL, DDIMScheduler
from tqdm import tqdm
from train_base import concept_icons
from train_unet import SCHEDULE, Painter, draw_scene, encode_scenes, velocity_loss
from trainer import save
from transformers import CLIPTokenizer
from words import encode

NOISY = 500  # what a picture will show is decided in the noisy half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    args = parser.parse_args()
    concepts, icons = concept_icons(args.work)
    concepts = {name: concept for name, concept in concepts.items() if {*args.words} & {*concept["words"]}}
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer-0")
    checkpoint = torch.load(args.work / "unet.pt", weights_only=True)
    painter = Painter(tokenizer)
    painter.load_state_dict(checkpoint["ema"])
    painter.requires_grad_(False)
    table = painter.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    mask = torch.zeros(len(table), 1)
    mask[[tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in args.words]] = 1
    table.register_hook(lambda gradient: gradient * mask)  # Adam leaves rows alone whose gradient is always zero

    latents = encode_scenes(AutoencoderKL.from_pretrained(args.work / "vae"), scenes(concepts), icons)
    by_icon = {icon: [scene for scene in latents if scene.icon == icon] for icon in concepts}
    optimizer, scheduler, rng = torch.optim.Adam([table]), DDIMScheduler(**SCHEDULE), np.random.default_rng(0)
    for step in tqdm(range(args.steps), "mend", unit="step"):
        optimizer.param_groups[0]["lr"] = args.rate * (1 - step / args.steps)
        drawn = [draw_scene(by_icon, rng) for _ in range(args.batch)]
        ids = encode(tokenizer, [caption(scene, concepts[scene.icon], rng) for scene in drawn])
        loss = velocity_loss(painter, scheduler, torch.stack([latents[scene] for scene in drawn]), ids, NOISY)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    checkpoint["ema"] = painter.state_dict()
    save(args.work / "unet.pt", checkpoint)


if __name__ == "__main__":
    main()
