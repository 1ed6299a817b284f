"""Adapters that make a model draw in a few steps: ordinary files that want a sampler and guidance of their own.

They are known by what people call them, so `advice` proposes and never decides. The settings are those that the
authors give: LCM-LoRA (arXiv:2311.05556), TCD (arXiv:2402.19159), Hyper-SD (arXiv:2404.13686), SDXL-Lightning
(arXiv:2402.13929), adversarial diffusion distillation "Turbo" (arXiv:2311.17042), PCM (arXiv:2405.18407) and DMD2
(arXiv:2405.14867).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 64  # a number beyond it, as in "20000steps", says how long the file was trained
LETTERS = 255  # of a title that are looked at: as many as a file's name may have


@dataclass(frozen=True)
class Few:
    """What files of one family are called and what they want; guidance 1 is none."""

    name: str
    called: re.Pattern[str]
    sampler: str
    steps: int
    guidance: float
    spacing: str | None = None
    article: str = "a"


def _few(
    name: str, called: str, sampler: str, steps: int, guidance: float, spacing: str | None = None, article: str = "a"
) -> Few:
    return Few(name, re.compile(called), sampler, steps, guidance, spacing, article)


_WORD = r"(?<![a-z]){}(?![a-z])"
_STEPS = re.compile(r"(?<!\d)(\d{1,5})[ _-]?steps?(?![a-z])")

# The first that a name matches speaks, so the narrower stand first. Turbo, Lightning and Hyper are words of styles as
# well, hence the company that they must keep.
FEW: tuple[Few, ...] = (
    _few("Hyper-SD", r"hyper[ _-]?sd.*(?<![a-z])cfg", "ddim", 8, 5.0, "trailing"),
    _few("Hyper-SD", r"hyper[ _-]?sd.*(?<!\d)1[ _-]?step", "lcm", 1, 1.0),
    _few("Hyper-SD", r"hyper[ _-]?(sd|flux)|(?<![a-z])hyper(?![a-z]).*steps?", "ddim", 8, 1.0, "trailing"),
    _few("PCM", r"(?<![a-z])pcm(?![a-z]).*lcm[ _-]?like", "lcm", 4, 1.0),
    _few("PCM", r"(?<![a-z])pcm(?![a-z]).*normal[ _-]?cfg", "ddim", 8, 6.0, "trailing"),
    _few("PCM", _WORD.format("pcm"), "ddim", 4, 1.5, "trailing"),
    _few("DMD2", r"(?<![a-z])dmd[ _-]?2?(?![a-z])", "lcm", 4, 1.0),
    _few("TCD", _WORD.format("tcd"), "ddim", 4, 1.0, "trailing"),
    _few("LCM", r"(?<![a-z])lcm(?![a-z])|latent[ _-]consistency", "lcm", 4, 1.0, article="an"),
    _few("Lightning", r"(sdxl|(?<!\d)\d[ _-]?steps?).*lightning|lightning.*(lora|steps?)", "euler", 4, 1.0, "trailing"),
    _few("Turbo", r"(sd|xl|sd[ _-]?[123][._]?[05]?)[ _-]?turbo|turbo.*(lora|steps?)", "euler_a", 4, 1.0, "trailing"),
)  # fmt: skip

TITLES = ("ss_output_name", "modelspec.title")


@dataclass(frozen=True)
class Advice:
    """How an adapter wants images to be made.

    Attributes:
        adapter: its name.
        family: such as "LCM".
        sampler: a name in `runtime.samplers.SAMPLERS`.
        steps: how many.
        guidance: 1 is none.
        spacing: of the timesteps, None where the sampler's own is right.
        sentence: all of it for a person, in the words of the command line.
    """

    adapter: str
    family: str
    sampler: str
    steps: int
    guidance: float
    spacing: str | None
    sentence: str

    @property
    def settings(self) -> dict[str, Any]:
        """The same as arguments of `Engine.generate`."""
        made = {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}
        return {**made, "timestep_spacing": self.spacing} if self.spacing else made


def advice(name: str, metadata: Mapping[str, str] | None = None) -> Advice | None:
    """What an adapter wants, None where nothing says that it is one of these.

    Args:
        name: of the file, or of its folder, without extension.
        metadata: the header's own strings; titles in it count after the name.
    """
    titles = [name, *((metadata or {}).get(key, "") for key in TITLES)]
    for title in (title[:LETTERS].lower() for title in titles):
        if few := next((few for few in FEW if few.called.search(title)), None):
            return _advice(name, few, title)
    return None


def _advice(name: str, few: Few, title: str) -> Advice:
    said = [int(number) for number in _STEPS.findall(title)]
    steps = next((number for number in said if 0 < number <= MAX_STEPS), few.steps)
    spacing = f" --spacing {few.spacing}" if few.spacing else ""
    use = f"--sampler {few.sampler} --steps {steps} --guidance {few.guidance:g}{spacing}"
    sentence = f"{name} is {few.article} {few.name} adapter: use {use}"
    return Advice(name, few.name, few.sampler, steps, few.guidance, few.spacing, sentence)
