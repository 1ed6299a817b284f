"""Few-step adapters under the names that their authors publish them by, and the words that must not mislead."""

from typing import Any

import pytest

from lora_edge.fewsteps import FEW, advice
from lora_edge.runtime.samplers import SAMPLERS, plan

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

PUBLISHED = [
    ("lcm-lora-sdv1-5", "LCM", "lcm", 4, 1, None),
    ("lcm-lora-sdxl", "LCM", "lcm", 4, 1, None),
    ("LCM_LoRA_Weights_SD15", "LCM", "lcm", 4, 1, None),
    ("tcd-sdxl-lora", "TCD", "ddim", 4, 1, "trailing"),
    ("Hyper-SD15-1step-lora", "Hyper-SD", "lcm", 1, 1, None),
    ("Hyper-SD15-2steps-lora", "Hyper-SD", "ddim", 2, 1, "trailing"),
    ("Hyper-SDXL-8steps-lora", "Hyper-SD", "ddim", 8, 1, "trailing"),
    ("Hyper-SD15-12steps-CFG-lora", "Hyper-SD", "ddim", 12, 5, "trailing"),
    ("Hyper-SDXL-8steps-CFG-lora", "Hyper-SD", "ddim", 8, 5, "trailing"),
    ("sdxl_lightning_2step_lora", "Lightning", "euler", 2, 1, "trailing"),
    ("sdxl_lightning_8step_lora", "Lightning", "euler", 8, 1, "trailing"),
    ("sd_xl_turbo_lora_v1", "Turbo", "euler_a", 4, 1, "trailing"),
    ("sdxl-turbo", "Turbo", "euler_a", 4, 1, "trailing"),
    ("pcm_sd15_smallcfg_2step_converted", "PCM", "ddim", 2, 1.5, "trailing"),
    ("pcm_sdxl_normalcfg_8step_converted", "PCM", "ddim", 8, 6, "trailing"),
    ("pcm_sd15_lcmlike_lora_converted", "PCM", "lcm", 4, 1, None),
    ("dmd2_sdxl_4step_lora", "DMD2", "lcm", 4, 1, None),
    ("dmd2_sdxl_4step_lora_fp16", "DMD2", "lcm", 4, 1, None),
]


@pytest.mark.parametrize(("name", "family", "sampler", "steps", "guidance", "spacing"), PUBLISHED)
def test_what_published_files_want(
    name: str, family: str, sampler: str, steps: int, guidance: float, spacing: str | None
) -> None:
    found = advice(name)
    assert found is not None
    assert (found.family, found.sampler, found.steps) == (family, sampler, steps)
    assert (found.guidance, found.spacing) == (guidance, spacing)


@pytest.mark.parametrize(
    "name",
    ["ink", "lightning", "lightning_bolts", "turbo_car", "porsche 911 turbo", "hyperrealism", "hyperdetailed-v2",
     "hyper detailer", "alcmene", "calcmaster", "pcmcia cards", "steps", "4step", "ink_20000steps", "tcdance", ""],
)  # fmt: skip
def test_words_of_styles_are_no_families(name: str) -> None:
    assert advice(name) is None


def test_the_sentence() -> None:
    lcm, light = advice("ink-lcm"), advice("sdxl_lightning_4step_lora")
    assert lcm and lcm.sentence == "ink-lcm is an LCM adapter: use --sampler lcm --steps 4 --guidance 1"
    assert light and light.sentence == (
        "sdxl_lightning_4step_lora is a Lightning adapter: "
        "use --sampler euler --steps 4 --guidance 1 --spacing trailing"
    )


@pytest.mark.parametrize("key", ["ss_output_name", "modelspec.title"])
def test_titles_of_the_metadata_count_after_the_name(key: str) -> None:
    found = advice("fast", {key: "My LCM 6 steps"})
    assert found and found.family == "LCM" and found.steps == 6
    assert found.sentence.startswith("fast is an LCM adapter: ")
    named = advice("sdxl_lightning_2step", {key: "lcm"})
    assert named and named.family == "Lightning"


def test_numbers_that_are_no_counts_of_steps() -> None:
    for name in ("lcm_20000steps", "lcm_0steps", "lcm-v5", "lcm_99999999999steps"):
        found = advice(name)
        assert found and found.steps == 4, name


@pytest.mark.parametrize("few", FEW, ids=lambda few: few.called.pattern)
def test_every_advice_can_be_followed(few: Any) -> None:
    assert few.sampler in SAMPLERS
    spacing = {"timestep_spacing": few.spacing} if few.spacing else {}
    assert plan(few.sampler, CONFIG, few.steps, **spacing).steps == few.steps


def test_settings_are_those_of_generate() -> None:
    found = advice("Hyper-SD15-4steps-lora")
    assert found and found.settings == {"sampler": "ddim", "steps": 4, "guidance": 1.0, "timestep_spacing": "trailing"}
    found = advice("lcm")
    assert found and found.settings == {"sampler": "lcm", "steps": 4, "guidance": 1.0}


def test_a_hostile_name_ends() -> None:
    for word in ("hyper", "lightning", "turbo", "1step", "pcm", "sdxl", "4" * 7):
        advice(word * 50_000, {"modelspec.title": word * 50_000})
