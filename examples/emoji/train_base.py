"""Trains the demo model: `python train_base.py vae|unet|save --work WORK` after `pictures.py --out WORK/pictures.npz`.

Each stage can be stopped and goes on from its last checkpoint in WORK.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pictures
from trainer import spawn

HERE = Path(__file__).parent


def concept_icons(work: Path) -> tuple[dict, dict]:
    """The concepts (see concepts.json), and every icon by name with those of the concepts first."""
    concepts = json.loads((HERE / "concepts.json").read_text())
    icons = pictures.load(work / "pictures.npz")
    return concepts, {name: icons[name] for name in [*concepts, *(n for n in icons if n not in concepts)]}


def vae(rank: int, work: Path, minutes: float) -> None:
    from train_vae import train_vae

    concepts, icons = concept_icons(work)
    train_vae(rank, list(icons.values()), len(concepts), minutes, work)


def unet(rank: int, work: Path, minutes: float) -> None:
    from train_unet import train_unet

    concepts, icons = concept_icons(work)
    train_unet(rank, concepts, icons, minutes, work)


STAGES = {"vae": (vae, 20.0), "unet": (unet, 65.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*STAGES, "save"])
    parser.add_argument("--work", type=Path, required=True, help="folder with pictures.npz; checkpoints go there")
    parser.add_argument("--minutes", type=float, help="how long to train")
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="where `save` writes the pipeline")
    args = parser.parse_args()
    if args.stage == "save":
        from assemble import assemble

        return assemble(args.work, args.out)
    stage, minutes = STAGES[args.stage]
    spawn(stage, args.processes, args.work, args.minutes or minutes)


if __name__ == "__main__":
    main()
