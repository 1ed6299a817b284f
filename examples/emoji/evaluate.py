"""Measures the demo model and its styles and draws the grids: `python evaluate.py --work WORK`.

Retrieval: a picture counts as right when, among all concepts drawn on the ground that was asked for, its own is the
nearest one (mean squared error after averaging 4x4 pixels). Styles are judged on concepts that no style's training
showed: by statistics that do not depend on where things are, and by retrieval among the same rule's renderings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pictures
import sampler
from captions import Scene, held_out, plain
from paint import GROUNDS, WHITE, luminance, on_ground, to_bytes, to_hsv
from PIL import Image
from robo import POSES
from robo import draw as robo_picture
from style_pictures import judged
from styles import STYLES
from train_vae import psnr, to_tensor

HERE = Path(__file__).parent
MULTIPLIERS = (0.7, 1.0)
ROBO = (
    "robo",
    "robo waving",
    "sad robo",
    "robo with both hands up",
    "robo wearing a red hat",
    "robo wearing a purple hat",
    "robo on a blue background",
    "robo on a brown background",
    "robo waving on a yellow background",
    "sad robo on a pink background",
    "robo wearing a blue hat on an orange background",
    "robo with both hands up on a red background",
)
WHITE_ROBO = 6  # the first ones
LOOK = ("red", "green", "blue", "saturation", "edges")
SHARPEST = 0.12  # a brightness step between neighbours that counts as an edge


def pooled(images: np.ndarray) -> np.ndarray:
    """[n, 64, 64, 3] -> [n, 16 * 16 * 3]."""
    return images.reshape(len(images), 16, 4, 16, 4, 3).mean((2, 4)).reshape(len(images), -1)


def ranks(images: np.ndarray, references: np.ndarray, truth: list[int]) -> np.ndarray:
    """How many references are nearer to each image than its own one; 0 is right."""
    distance = ((pooled(images)[:, None] - pooled(references)[None]) ** 2).mean(-1)
    return (distance < distance[np.arange(len(images)), truth][:, None]).sum(1)


def shares(found: np.ndarray) -> dict[str, float]:
    return {"top1": round(float((found == 0).mean()), 3), "top5": round(float((found < 5).mean()), 3)}


def ground_of(image: np.ndarray) -> str:
    """Name of the ground nearest to the median colour along the border."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)])
    names = {"white": WHITE, **GROUNDS}
    return min(names, key=lambda name: float(((np.median(border, 0) - np.array(names[name]) / 255) ** 2).sum()))


def look(image: np.ndarray) -> np.ndarray:
    """Statistics [5] of a picture that do not depend on layout: mean colour, saturation, density of edges."""
    light = luminance(image)
    edges = (np.abs(np.diff(light, axis=0)) > SHARPEST).mean() + (np.abs(np.diff(light, axis=1)) > SHARPEST).mean()
    return np.array([*image.mean((0, 1)), to_hsv(image)[..., 1].mean(), edges])


def sheet(rows: list[np.ndarray], path: Path) -> None:
    """Rows of pictures [n, 64, 64, 3] -> one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    Image.fromarray(to_bytes(grid)).quantize(256).save(path, optimize=True)  # a third of the size


def rank_among(image: np.ndarray, scene: Scene, names: list[str], icons: dict) -> int:
    """How many concepts on the scene's ground are nearer to the picture than the right one."""
    drawn = [Scene(name, scene.ground, scene.color if name == scene.icon else None).draw(icons) for name in names]
    return int(ranks(image[None], np.stack(drawn), [names.index(scene.icon)])[0])


def judge_vae(pipe, concepts: dict, icons: dict) -> dict:
    """Mean decibels of reconstructions: what no picture of the model can surpass."""
    scenes = [Scene(name, list(GROUNDS)[i % len(GROUNDS)]) for i, name in enumerate(concepts)]
    shown = {"white": [on_ground(icons[name]) for name in concepts], "grounds": [s.draw(icons) for s in scenes]}
    shown |= {title: [rule(icons[name]) for name in concepts] for title, rule in STYLES.items()}
    return {title: round(float(psnr(pipe.vae, to_tensor(images))[1].mean()), 1) for title, images in shown.items()}


def judge_base(pipe, concepts: dict, icons: dict, out: Path, seed: int) -> dict:
    names = list(concepts)
    white = [Scene(name) for name in names]
    unseen = [Scene(name, sorted(held_out(name))[i % 2]) for i, name in enumerate(names)]
    recolored = [
        Scene(name, "white", color)
        for name in names
        if concepts[name].get("recolor")
        for color in ("green", "blue", "orange")
        if color != concepts[name]["color"]
    ]
    result = {}
    for title, asked in (("white", white), ("unseen_grounds", unseen), ("recolored", recolored)):
        images = sampler.paint(pipe, [plain(scene, concepts[scene.icon]) for scene in asked], seed)
        found = np.array([rank_among(image, s, names, icons) for image, s in zip(images, asked, strict=True)])
        right = np.mean([ground_of(image) == s.ground for image, s in zip(images, asked, strict=True)])
        wrong = [plain(s, concepts[s.icon]) for s, rank in zip(asked, found, strict=True) if rank]
        result[title] = {
            "prompts": len(asked),
            **shares(found),
            "ground_right": round(float(right), 3),
            "missed": wrong,
        }
        across = 12
        whole = len(images) // across * across
        sheet(list(images[:whole].reshape(-1, across, *images.shape[1:])), out / f"base-{title.replace('_', '-')}.png")
    return result


def judge_style(pipe, name: str, path: Path, concepts: dict, icons: dict, out: Path, seed: int) -> dict:
    rule, names = STYLES[name], list(concepts)
    asked = judged(concepts)
    prompts = [plain(Scene(icon), concepts[icon]) for icon in asked]
    truth = [names.index(icon) for icon in asked]
    ordinary = np.stack([on_ground(icons[icon]) for icon in asked])
    styled = np.stack([rule(icons[icon]) for icon in names])
    target = np.stack([look(styled[i]) for i in truth])
    start = np.stack([look(image) for image in ordinary])
    spread = target.std(0) + start.std(0) + 0.02
    result, rows = {}, [sampler.paint(pipe, prompts, seed)]
    for multiplier in MULTIPLIERS:
        with sampler.adapter(pipe, path, multiplier) as layers:
            images = sampler.paint(pipe, prompts, seed)
        looks = np.stack([look(image) for image in images])
        nearer = (((looks - target) / spread) ** 2).sum(1) < (((looks - start) / spread) ** 2).sum(1)
        result[str(multiplier)] = {
            "layers": layers,
            "nearer_to_style": round(float(nearer.mean()), 3),
            "look": dict(zip(LOOK, looks.mean(0).round(3).tolist(), strict=True)),
            "shape_among_styled": shares(ranks(images, styled, truth)),
        }
        rows.append(images)
    result["look_of_rule"] = target.mean(0).round(3).tolist()
    result["look_of_plain"] = start.mean(0).round(3).tolist()
    sheet([row[:12] for row in [*rows, styled[truth]]], out / f"style-{name}.png")
    return result


def judge_subject(pipe, path: Path, concepts: dict, icons: dict, out: Path, seed: int) -> dict:
    """Robo as he was shown and in new combinations; and whether other things stay what they are beside the adapter."""
    names, asked = list(concepts), [Scene(icon) for icon in judged(concepts)]
    prompts = [plain(scene, concepts[scene.icon]) for scene in asked]
    without = sampler.paint(pipe, ROBO, seed)
    with sampler.adapter(pipe, path, 1.0):
        robo, others = sampler.paint(pipe, ROBO, seed), sampler.paint(pipe, prompts, seed)
    known = np.asarray(robo_picture(POSES[0]), np.float32)[None] / 255
    references = np.concatenate([np.stack([Scene(name).draw(icons) for name in names]), known])
    sheet([without, robo, others[: len(ROBO)]], out / "subject-robo.png")
    found = np.array([rank_among(image, s, names, icons) for image, s in zip(others, asked, strict=True)])
    return {
        "robo_nearest_on_white": int((ranks(robo[:WHITE_ROBO], references, [len(names)] * WHITE_ROBO) == 0).sum()),
        "of": WHITE_ROBO,
        "other_things_stay": shares(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with pictures.npz")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--styles", type=Path, default=HERE / "styles")
    parser.add_argument("--out", type=Path, default=HERE / "pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="base, or names of styles")
    args = parser.parse_args()
    concepts = json.loads((HERE / "concepts.json").read_text())
    icons, pipe = pictures.load(args.work / "pictures.npz"), sampler.load(args.model)
    report_path = args.out / "evaluation.json"
    report = json.loads(report_path.read_text()) if report_path.exists() else {}
    if not args.only or "base" in args.only:
        report["vae_decibels"] = judge_vae(pipe, concepts, icons)
        report["base"] = judge_base(pipe, concepts, icons, args.out, args.seed)
    for name in args.only or STYLES:
        if name in STYLES and (path := args.styles / f"{name}.safetensors").exists():
            report[name] = judge_style(pipe, name, path, concepts, icons, args.out, args.seed)
    if (path := args.styles / "robo.safetensors").exists() and (not args.only or "robo" in args.only):
        report["robo"] = judge_subject(pipe, path, concepts, icons, args.out, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    report_path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
