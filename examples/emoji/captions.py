"""What pictures are called: several templates for the same content, so that the model does not learn one phrase."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from paint import GROUNDS, HUES, WHITE, on_ground, recolor

HELD_OUT_GROUNDS = 2  # grounds per concept that training never shows

TEMPLATES = (
    "{thing}",
    "{thing}",
    "{a} {thing}",
    "{a} {thing}",
    "the {thing}",
    "picture of {a} {thing}",
    "a picture of {a} {thing}",
    "an emoji of {a} {thing}",
    "icon of {a} {thing}",
)
ON_GROUND = (
    "{} on {a} {ground} background",
    "{} on {a} {ground} background",
    "{}, {ground} background",
    "{} on {ground}",
    "{ground} background, {}",
)
ON_WHITE = (*["{}"] * 8, "{} on a white background", "{} on white")


@dataclass(frozen=True)
class Scene:
    """One thing to show: an icon by name, in its own colour or another, on a ground by name."""

    icon: str
    ground: str = "white"
    color: str | None = None  # None: as drawn

    def drawing(self, icons: dict[str, np.ndarray]) -> np.ndarray:
        """The icon [64, 64, 4] in [0, 1], in the scene's colour."""
        return icons[self.icon] if self.color is None else recolor(icons[self.icon], self.color)

    def draw(self, icons: dict[str, np.ndarray]) -> np.ndarray:
        """Picture [64, 64, 3] in [0, 1]."""
        return on_ground(self.drawing(icons), WHITE if self.ground == "white" else GROUNDS[self.ground])


def held_out(icon: str) -> set[str]:
    """The grounds on which training never shows this icon; the same on every machine."""
    start = zlib.crc32(icon.encode())
    names = list(GROUNDS)
    return {names[(start + 3 * i) % len(names)] for i in range(HELD_OUT_GROUNDS)}


def scenes(concepts: dict[str, dict], unseen: bool = False) -> list[Scene]:
    """All scenes for training, or (unseen) those kept from it, in a fixed order."""
    listed = []
    for icon, concept in concepts.items():
        hidden = held_out(icon)
        colors = [None, *(c for c in HUES if concept.get("recolor") and c != concept["color"])]
        listed += [
            Scene(icon, ground, color)
            for color in colors
            for ground in ("white", *GROUNDS)
            if (ground in hidden) == unseen
        ]
    return listed


def caption(scene: Scene, concept: dict, rng: np.random.Generator) -> str:
    """A random caption that is true of the scene. Colours of things are said half of the time, of grounds always."""
    thing = pick(concept["words"], rng)
    color = scene.color or concept.get("color")
    if color and (scene.color or ambiguous(scene.icon) or rng.random() < 0.5):
        thing = f"{color} {thing}"
    template = pick(TEMPLATES, rng)
    if plural(thing):
        template = template.replace("{a} ", "")
    text = template.format(thing=thing, a=article(thing))
    frame = pick(ON_WHITE if scene.ground == "white" else ON_GROUND, rng)
    return frame.format(text, ground=scene.ground, a=article(scene.ground))


def plain(scene: Scene, concept: dict) -> str:
    """The one caption that evaluation uses: `a red apple on a blue background`."""
    color = scene.color or (concept["color"] if ambiguous(scene.icon) else None)
    thing = " ".join(filter(None, [color, concept["words"][0]]))
    text = thing if plural(thing) else f"{article(thing)} {thing}"
    return text if scene.ground == "white" else f"{text} on {article(scene.ground)} {scene.ground} background"


def article(thing: str) -> str:
    return "an" if thing[0] in "aeiou" and not thing.startswith(("un", "uf")) else "a"


def ambiguous(icon: str) -> bool:
    """Two icons share the word `apple`; only the colour tells them apart."""
    return icon.endswith("apple") and icon != "pineapple"


def plural(thing: str) -> bool:
    return thing.endswith("s") and not thing.endswith(("ss", "us", "cactus", "octopus"))


def pick(options: list | tuple, rng: np.random.Generator):
    return options[rng.integers(len(options))]
