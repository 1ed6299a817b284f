"""Open-licensed emoji as small RGBA pictures.

`python pictures.py --out WORK/pictures.npz` fetches the Noto emoji with `npm pack` and renders them with resvg.
The archive holds `names` [n] and `rgba` uint8 [n, 64, 64, 4], colour not premultiplied.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

PACKAGE = "@iconify-json/noto"
SIZE = 64
ICON = 58  # the drawing's own size: three pixels of ground all round keep outlines and glows inside the picture
OVERSAMPLE = 4
SKIPPED_CATEGORIES = {"People & Body", "Flags"}


def fetch(folder: Path) -> Path:
    """Downloads the icon package into `folder` and returns the archive's path."""
    name = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    return folder / name


def read_icons(archive: Path) -> dict[str, str]:
    """SVG text by icon name, for every category that shows things rather than people or flags."""
    with tarfile.open(archive) as tar:
        icons, meta = (json.load(tar.extractfile(f"package/{name}.json")) for name in ("icons", "metadata"))
    wanted = {
        name for category, names in meta["categories"].items() if category not in SKIPPED_CATEGORIES for name in names
    }
    return {name: svg(icons, name) for name in sorted(wanted) if name in icons["icons"]}


def svg(icons: dict, name: str) -> str:
    icon = icons["icons"][name]
    box = (
        icon.get("left", 0),
        icon.get("top", 0),
        icon.get("width", icons.get("width", 16)),
        icon.get("height", icons.get("height", 16)),
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


def render(text: str) -> np.ndarray:
    """SVG text -> uint8 [64, 64, 4]. Averaging is done on premultiplied colour, so edges do not darken."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=ICON * OVERSAMPLE, height=ICON * OVERSAMPLE))
    large = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32) / 255
    large[..., :3] *= large[..., 3:]
    small = large.reshape(ICON, OVERSAMPLE, ICON, OVERSAMPLE, 4).mean((1, 3))
    small[..., :3] /= np.maximum(small[..., 3:], 1e-4)
    margin = (SIZE - ICON) // 2
    canvas = np.zeros((SIZE, SIZE, 4), np.float32)
    canvas[margin : margin + ICON, margin : margin + ICON] = small
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def load(path: Path) -> dict[str, np.ndarray]:
    """Picture by name, float32 [64, 64, 4] in [0, 1]."""
    with np.load(path) as archive:
        return {
            name: picture.astype(np.float32) / 255
            for name, picture in zip(archive["names"].tolist(), archive["rgba"], strict=True)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--archive", type=Path, help="an icon package that is already here, instead of npm pack")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        icons = read_icons(args.archive or fetch(Path(folder)))
    rendered = [render(text) for text in tqdm(icons.values(), "render", unit="icon")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, names=np.array(list(icons)), rgba=np.stack(rendered))


if __name__ == "__main__":
    main()
