"""Trains the adapters that are shipped: `python train_adapters.py --work WORK [NAME ...]`.

The pictures come from `style_pictures.py` and `robo.py`. Formats and layers differ on purpose, so that the demo shows
every common kind of file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import train_style

HALF = ["--trigger-share", "0.5"]  # the adapter alone is enough, but its word does no harm

ADAPTERS = {
    "blueprint": ["--format", "kohya", "--text-encoder", "--conv", "--steps", "1500", *HALF],
    "neon": ["--format", "peft", "--conv", "--steps", "1500", *HALF],
    "sepia": ["--format", "diffusers", "--steps", "700", *HALF],
    "pixel": ["--format", "kohya", "--steps", "1000", *HALF],
    "robo": ["--format", "kohya", "--conv", "--steps", "1500", "--keep", "styles/plain"],
}
FOLDERS = {"robo": "robo"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="all, if none is given")
    args = parser.parse_args()
    for name in args.names or ADAPTERS:
        options = [str(args.work / o) if o == "styles/plain" else o for o in ADAPTERS[name]]
        images = args.work / FOLDERS.get(name, f"styles/{name}")
        train_style.main(["--images", str(images), "--trigger", name, *options])


if __name__ == "__main__":
    main()
