"""Trains an adapter of your own from a folder of pictures.

python train_style.py --images my_pictures --trigger sketch
writes styles/sketch.safetensors, which lora-edge uses as `<lora:sketch:0.8>`.

Captions are the lines of a .txt file beside each picture, else its name: "red_apple-03.png" is a "red apple".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from adapter_file import FORMATS, Trained, write
from folder import Example, FolderError, read_folder

HERE = Path(__file__).parent
UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class Learner(torch.nn.Module):
    """The frozen model with trainable low-rank layers in it."""

    def __init__(self, model: Path, rank: int, text: bool, convolutions: bool) -> None:
        super().__init__()
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from peft import LoraConfig
        from transformers import CLIPTextModel, CLIPTokenizer

        self.vae = AutoencoderKL.from_pretrained(model / "vae").float()
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet").float()
        self.text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder").float()
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        self.requires_grad_(False)
        self.unet.set_attn_processor(AttnProcessor())  # on CPUs its backward pass is the faster one
        layers = UNET_LAYERS + CONVOLUTIONS * convolutions
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
        if text:
            self.text_encoder.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TEXT_LAYERS))

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] in [-1, 1] -> [n, c, h / f, w / f]."""
        encoded = [self.vae.encode(part).latent_dist.mean for part in pictures.split(16)]
        return torch.cat(encoded) * self.vae.config.scaling_factor

    def loss(self, latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Mean squared error at random time steps of what the model predicts: noise, or velocity."""
        noise = torch.randn_like(latents)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),))
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text_encoder(ids).last_hidden_state
            output = self.unet(self.scheduler.add_noise(latents, noise, steps), steps, context).sample
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, steps) if velocity else noise
        return torch.nn.functional.mse_loss(output.float(), target)

    def trained(self) -> tuple[dict, dict]:
        from peft import get_peft_model_state_dict

        return tuple(
            get_peft_model_state_dict(module) if getattr(module, "peft_config", None) else {}
            for module in (self.unet, self.text_encoder)
        )


def picture_size(model: Path) -> int:
    """Pixels along an edge of what the model paints."""
    unet, vae = (json.loads((model / part / "config.json").read_text()) for part in ("unet", "vae"))
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def with_trigger(caption: str, trigger: str, rng: np.random.Generator) -> str:
    """Before or after the caption, unless the caption has it already."""
    if trigger.lower() in caption.lower():
        return caption
    parts = [trigger, caption] if rng.random() < 0.5 else [caption, trigger]
    return ", ".join(part for part in parts if part)


def batches(learner: Learner, shown: list[Example], kept: list[Example], args: argparse.Namespace) -> Callable:
    """A function that draws a random batch: latents and captions. One in three is a kept picture, if there are any."""
    rng = np.random.default_rng(args.seed)
    groups = [
        (learner.latents(torch.stack([e.picture for e in group])) if group else None, group) for group in (shown, kept)
    ]

    def draw() -> tuple[torch.Tensor, list[str]]:
        latents, captions = [], []
        for _ in range(args.batch):
            is_kept = bool(kept) and rng.random() < 1 / 3
            encoded, group = groups[is_kept]
            index = rng.integers(len(group))
            caption = group[index].captions[rng.integers(len(group[index].captions))]
            if not is_kept and rng.random() < args.trigger_share:
                caption = with_trigger(caption, args.trigger, rng)
            latents.append(encoded[index])
            captions.append("" if rng.random() < 0.1 else caption)
        return torch.stack(latents), captions

    return draw


def fit(learner: Learner, draw: Callable, steps: int, rate: float) -> None:
    from tqdm import tqdm

    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    smooth = None
    for step in (bar := tqdm(range(steps), "train", unit="step", mininterval=1.0)):
        warm, progress = min(1.0, (step + 1) / max(1, 0.05 * steps)), step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = learner.loss(*draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)


def train(args: argparse.Namespace) -> Path:
    """Reads, trains, writes; returns the file's path."""
    if args.text_encoder and args.format == "peft":
        raise FolderError("A PEFT file holds one model, so --text-encoder needs --format kohya or diffusers.")
    if not (args.model / "model_index.json").is_file():
        raise FolderError(f"There is no diffusers model in {args.model}.")
    size = picture_size(args.model)
    shown = read_folder(args.images, size)
    kept = read_folder(args.keep, size) if args.keep else []
    torch.manual_seed(args.seed)
    learner = Learner(args.model, args.rank, args.text_encoder, args.conv)
    fit(learner, batches(learner, shown, kept, args), args.steps, args.rate)
    unet, text_encoder = learner.trained()
    out = args.out or HERE / "styles" / f"{args.trigger}.safetensors"
    write(Trained(unet, text_encoder, args.rank, args.trigger, args.steps, len(shown)), out, args.format)
    return out


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--trigger", required=True, help="word that calls the style or the character")
    parser.add_argument("--out", type=Path, help="file to write (default: styles/TRIGGER.safetensors, here)")
    parser.add_argument("--format", choices=FORMATS, default="kohya")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--text-encoder", action="store_true", help="train the text encoder too")
    parser.add_argument("--conv", action="store_true", help="train the convolutions too")
    parser.add_argument("--keep", type=Path, help="ordinary pictures, shown without the trigger so that they stay")
    parser.add_argument("--trigger-share", type=float, default=1.0, help="share of captions that carry the trigger")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        print(f"Wrote {train(args)}")
    except FolderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
