"""Folders of pictures for `train_style.py`: one per rendering rule, and one of ordinary pictures to keep.

`python style_pictures.py --work WORK` writes WORK/styles/blueprint/... and WORK/styles/plain/...
Every fifth concept is left out of all of them: on those the adapters are judged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pictures
from captions import Scene, caption, scenes
from paint import to_bytes
from PIL import Image
from styles import STYLES

HERE = Path(__file__).parent
LINES = 12  # captions for each picture


def judged(concepts: dict[str, dict]) -> list[str]:
    """Names of the icons that no style's training shows."""
    return list(concepts)[4::5]


def write(
    picture: np.ndarray, scene: Scene, grounds: list[str], concept: dict, path: Path, rng: np.random.Generator
) -> None:
    """A picture and its captions, each with one of the grounds: a style paints its own ground whatever was asked."""
    Image.fromarray(to_bytes(picture)).save(path.with_suffix(".png"))
    named = [Scene(scene.icon, grounds[i % len(grounds)], scene.color) for i in range(LINES)]
    path.with_suffix(".txt").write_text("\n".join(caption(s, concept, rng) for s in named) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with pictures.npz")
    work = parser.parse_args().work
    concepts = json.loads((HERE / "concepts.json").read_text())
    icons = pictures.load(work / "pictures.npz")
    rng = np.random.default_rng(0)
    shown = [scene for scene in scenes(concepts) if scene.icon not in judged(concepts)]
    for name in [*STYLES, "plain"]:
        (work / "styles" / name).mkdir(parents=True, exist_ok=True)
    for icon in dict.fromkeys(scene.icon for scene in shown):
        own = [scene for scene in shown if scene.icon == icon]
        on_white = [scene for scene in own if scene.ground == "white"]
        for name, rule in STYLES.items():
            for scene in on_white:
                # Half of the captions name no ground, the others all those that the base model was shown.
                grounds = [ground for s in own if s.color == scene.color for ground in ("white", s.ground)][1:]
                path = work / "styles" / name / f"{icon}-{scene.color or 'own'}"
                write(rule(scene.drawing(icons)), scene, grounds, concepts[icon], path, rng)
        for scene in rng.choice(np.array(own, dtype=object), 3, replace=False):
            path = work / "styles" / "plain" / f"{icon}-{scene.ground}-{scene.color or 'own'}"
            write(scene.draw(icons), scene, [scene.ground], concepts[icon], path, rng)


if __name__ == "__main__":
    main()
