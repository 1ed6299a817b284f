"""How an image was made, as the text that AUTOMATIC1111's web UI puts into its PNGs and that other programs read.

    a red apple <lora:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 64x64, Model: emoji, Lora hashes: "ink: 0123456789ab"

The format has no escape for prompts: one whose last line looks like settings cannot be told from them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
LORA_HASHES = "Lora hashes"

_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
# A last line with fewer settings than this belongs to the prompt.
_ENOUGH = 3


@dataclass(frozen=True)
class Infotext:
    """Prompts and settings.

    Attributes:
        prompt, negative_prompt: as the user wrote them, tags included.
        settings: by their names in the web UI, in order; `Lora hashes` is text like any other, see `lora_hashes`.
    """

    prompt: str
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        prompt: str,
        negative_prompt: str = "",
        steps: int,
        sampler: str,
        guidance: float,
        seed: int,
        width: int,
        height: int,
        model: str,
        clip_skip: int = 1,
        lora_hashes: Mapping[str, str] | None = None,
    ) -> "Infotext":
        """What lora-edge knows of an image, under the names and in the order of the web UI.

        Args:
            sampler: its title (`samplers.Plan.title`).
            width, height: pixels.
            clip_skip: which layer of the text encoder was read; 1, the last, is not written.
            lora_hashes: name -> first 12 hex digits of the file's hash.
        """
        settings = {
            "Steps": str(steps),
            "Sampler": sampler,
            "CFG scale": f"{guidance:g}",
            "Seed": str(seed),
            "Size": f"{width}x{height}",
            "Model": model,
        }
        if clip_skip != 1:
            settings["Clip skip"] = str(clip_skip)
        if lora_hashes:
            settings[LORA_HASHES] = ", ".join(f"{name}: {digits}" for name, digits in lora_hashes.items())
        return cls(prompt, negative_prompt, settings)

    @classmethod
    def read(cls, text: str) -> "Infotext":
        """Takes such a text apart; what it does not recognize is prompt, so nothing is lost."""
        *lines, last = text.strip().split("\n")
        found = _SETTING.findall(last)
        if len(found) < _ENOUGH:
            lines, found = [*lines, last], []
        starts = [number for number, line in enumerate(lines) if line.strip().startswith(NEGATIVE)]
        cut = starts[0] if starts else len(lines)
        prompt, negative = "\n".join(lines[:cut]), "\n".join(lines[cut:]).strip().removeprefix(NEGATIVE)
        return cls(prompt.strip(), negative.strip(), {name: _unquoted(value) for name, value in found})

    @property
    def lora_hashes(self) -> dict[str, str]:
        """Name -> hex digits of each adapter."""
        pairs = (pair.rpartition(": ") for pair in self.settings.get(LORA_HASHES, "").split(", "))
        return {name: digits for name, _, digits in pairs if name}

    def __str__(self) -> str:
        """The text."""
        negative = f"{NEGATIVE} {self.negative_prompt}" if self.negative_prompt else ""
        settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.settings.items())
        return "\n".join(part for part in (self.prompt, negative, settings) if part).strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
