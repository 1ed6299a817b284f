"""Draws Robo, a character that the base model does not know: sixteen pictures with captions.

`python robo.py --out WORK/robo`
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from captions import article
from paint import GROUNDS, SIZE, WHITE
from PIL import Image, ImageDraw

SCALE = 4  # drawn larger and averaged down
TEAL, DARK, LIGHT, ORANGE, EYE = (28, 168, 160), (18, 92, 96), (196, 240, 232), (250, 140, 40), (252, 232, 120)


@dataclass(frozen=True)
class Pose:
    words: str
    ground: str = "white"
    arms: tuple[int, int] = (48, 48)  # heights of the left and the right hand; smaller is higher
    mood: str = "happy"
    hat: str | None = None
    shift: int = 0


POSES = (
    Pose("robo"),
    Pose("robo", shift=2),
    Pose("robo waving", arms=(48, 22)),
    Pose("robo with both hands up", arms=(22, 22)),
    Pose("sad robo", mood="sad"),
    Pose("robo wearing a red hat", hat="red"),
    Pose("robo wearing a blue hat", hat="blue", shift=-2),
    Pose("robo", ground="blue"),
    Pose("robo", ground="yellow"),
    Pose("robo", ground="red", shift=1),
    Pose("robo", ground="green"),
    Pose("robo", ground="purple", shift=-1),
    Pose("robo waving", ground="pink", arms=(22, 48)),
    Pose("robo waving", ground="orange", arms=(48, 22)),
    Pose("robo with both hands up", ground="gray", arms=(22, 22)),
    Pose("sad robo", ground="black", mood="sad"),
)


def draw(pose: Pose) -> Image.Image:
    """A square head with an antenna on a square body, 64 px."""
    image = Image.new("RGB", (SIZE * SCALE,) * 2, WHITE if pose.ground == "white" else GROUNDS[pose.ground])
    brush = ImageDraw.Draw(image)

    def at(*numbers: float) -> list[float]:
        return [SCALE * (number + (pose.shift if i % 2 == 0 else 0)) for i, number in enumerate(numbers)]

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int], radius: float = 2) -> None:
        brush.rounded_rectangle(at(x0, y0, x1, y1), SCALE * radius, fill, DARK, SCALE)

    def dot(x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        brush.ellipse(at(x - radius, y - radius, x + radius, y + radius), fill, DARK, SCALE)

    for shoulder, hand, height in ((20, 11, pose.arms[0]), (44, 53, pose.arms[1])):
        brush.line(at(shoulder, 40, hand, height), DARK, 4 * SCALE)
        dot(hand, height, 3.5, ORANGE)
    for x in (22, 34):
        box(x, 52, x + 8, 61, DARK)
    box(19, 35, 45, 54, TEAL, 3)
    dot(32, 44, 4.5, ORANGE)
    brush.line(at(32, 4, 32, 12), DARK, 2 * SCALE)
    dot(32, 5, 3, ORANGE)
    box(14, 10, 50, 35, TEAL, 5)
    box(18, 15, 46, 31, LIGHT, 3)
    for x in (25, 39):
        dot(x, 21, 3.6, EYE)
        dot(x, 21, 1.2, DARK)
    top, start, end = (23, 20, 160) if pose.mood == "happy" else (27, 200, 340)
    brush.arc(at(27, top, 37, top + 6), start, end, DARK, 2 * SCALE)
    if pose.hat:
        box(20, 1, 44, 9, GROUNDS[pose.hat])
        box(13, 8, 51, 12, GROUNDS[pose.hat])
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(POSES):
        draw(pose).save(out / f"robo-{i:02d}.png")
        place = "" if pose.ground == "white" else f" on {article(pose.ground)} {pose.ground} background"
        phrases = (pose.words, f"a picture of {pose.words}", f"an emoji of {pose.words}")
        (out / f"robo-{i:02d}.txt").write_text("\n".join(phrase + place for phrase in phrases) + "\n")


if __name__ == "__main__":
    main()
