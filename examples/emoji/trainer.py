"""The training loop that the VAE and the UNet share: timed, resumable, and spread over processes of one thread each.

Processes train on their own and average their weights every few seconds. On shared cores this beats an all-reduce of
gradients at every step, where the slowest process of the moment holds up the others. The schedule follows the clock,
so a run ends when it was told to, whatever else the machine does.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

AVERAGE_EVERY = 10.0  # seconds
SAVE_EVERY = 60.0


def spawn(work: Callable, processes: int, *args: object) -> None:
    """Calls `work(rank, *args)` in every process, with a gloo group between them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rendezvous = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"emoji-{os.getpid()}"
    mp.spawn(enter, (work, processes, rendezvous, args), nprocs=processes)
    rendezvous.unlink(missing_ok=True)


def enter(rank: int, work: Callable, processes: int, rendezvous: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes, timeout=timedelta(hours=2)
    )
    work(rank, *args)
    dist.destroy_process_group()


def average(tensors: list[torch.Tensor]) -> None:
    """Replaces float tensors by their mean over the processes, in one transfer."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for tensor in tensors:
        tensor.data.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def learning_rate(peak: float, progress: float) -> float:
    """Short warm-up, level until 60 %, then a cosine down to 1 % of the peak. Progress in [0, 1]."""
    if progress < 0.02:
        return peak * (0.02 + progress / 0.02 * 0.98)
    fall = max(0.0, (progress - 0.6) / 0.4)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


def train(
    module: nn.Module,
    loss: Callable[[], torch.Tensor],
    *,
    minutes: float,
    peak: float,
    checkpoint: Path,
    label: str,
    ema: float = 0.9,
) -> dict[str, torch.Tensor]:
    """Trains what in `module` requires a gradient; returns the averaged (EMA) state dict. Goes on from `checkpoint`."""
    rank = dist.get_rank()
    for value in module.state_dict().values():
        dist.broadcast(value, 0)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    state = {"elapsed": 0.0, "steps": 0, "averagings": 0, "ema": None}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved.pop("module"))
        optimizer.load_state_dict(saved.pop("optimizer"))
        state |= saved
    shadow = state["ema"] or {name: value.clone() for name, value in module.state_dict().items()}
    begun, last_saved, recent = time.monotonic() - state["elapsed"], time.monotonic(), []
    next_average = time.monotonic() + AVERAGE_EVERY
    while True:
        elapsed = time.monotonic() - begun
        if time.monotonic() < next_average and elapsed < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peak, elapsed / (minutes * 60))
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            recent.append(float(value.detach()))
            continue
        moments = [optimizer.state[p][key] for p in parameters for key in ("exp_avg", "exp_avg_sq")]
        numbers = torch.tensor([elapsed, sum(recent) / max(1, len(recent)), float(len(recent))])
        average([*parameters, *moments, numbers])
        elapsed, mean_loss, steps = numbers.tolist()
        begun = time.monotonic() - elapsed
        state["averagings"] += 1
        state["steps"] += round(steps * dist.get_world_size())
        keep = min(ema, state["averagings"] / (state["averagings"] + 9))
        for name, value in module.state_dict().items():
            shadow[name].lerp_(value, 1 - keep) if value.is_floating_point() else shadow[name].copy_(value)
        recent.clear()
        next_average = time.monotonic() + AVERAGE_EVERY
        over = elapsed >= minutes * 60
        if rank == 0:
            print(f"{label} {elapsed / 60:6.2f} min  {state['steps']} steps  loss {mean_loss:.4f}", flush=True)
            if over or time.monotonic() - last_saved > SAVE_EVERY:
                save(
                    checkpoint,
                    state
                    | {
                        "elapsed": elapsed,
                        "ema": shadow,
                        "module": module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )
                last_saved = time.monotonic()
        if over:
            break
    return shadow


def save(path: Path, content: dict) -> None:
    """Writes beside the target and renames, so that a checkpoint is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
