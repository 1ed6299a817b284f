"""The prompt language in whole images, against torch, diffusers and peft walking the same steps by hand.

Only what a prompt means at each step is written here by hand; encoding, denoising and decoding are the libraries'.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_edge.errors import RequestError
from lora_edge.runtime.engine import Engine

STEPS = 8
NEGATIVE = "blue"


class Cond(NamedTuple):
    """What a prompt means for some steps: chunks of (text, weight), weight by `AND`, adapters."""

    chunks: Sequence[Sequence[tuple[str, float]]]
    weight: float = 1.0


Oracle = Callable[..., np.ndarray]


def plain(text: str, weight: float = 1.0) -> Cond:
    return Cond([[(text, 1.0)]], weight)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path, styles: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.load_lora_weights(str(styles), weight_name="ink.safetensors", adapter_name="ink")
    pipe.load_lora_weights(str(styles / "deep"), weight_name="glow.safetensors", adapter_name="glow")
    return pipe


def encoded(pipe: Any, cond: Cond, clip_skip: int = 1) -> torch.Tensor:
    states = []
    for chunk in cond.chunks:
        pieces = [(pipe.tokenizer(text, add_special_tokens=False).input_ids, weight) for text, weight in chunk]
        ids = [id_ for piece, _ in pieces for id_ in piece]
        weights = [1.0, *(weight for piece, weight in pieces for _ in piece)]
        column = torch.ones(77, 1, dtype=torch.float64)
        column[: len(weights), 0] = torch.tensor(weights, dtype=torch.float64)
        row = torch.tensor([[512, *ids, *[513] * (76 - len(ids))]])
        out = pipe.text_encoder(row, output_hidden_states=True)
        state = out.last_hidden_state
        if clip_skip > 1:
            final = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
            state = final(out.hidden_states[-clip_skip])
        state = state[0].double()
        weighted = state * column
        states.append((weighted * (state.mean() / weighted.mean())).float())
    return torch.cat(states)


@pytest.fixture(scope="module")
def oracle(pipe: Any) -> Oracle:
    """oracle(at, seed=, ...) -> pixels; at(step) -> (parts of the prompt, adapters) with step from 1."""

    @torch.no_grad()
    def paint(
        at: Callable[[int], tuple[list[Cond], dict[str, Any]]],
        seed: int = 7,
        guidance: float = 4.0,
        clip_skip: int = 1,
    ) -> np.ndarray:
        scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
        for step, timestep in enumerate(scheduler.timesteps, 1):
            parts, adapters = at(step)
            if adapters:
                pipe.enable_lora()
                pipe.set_adapters(list(adapters), list(adapters.values()))
            else:
                pipe.disable_lora()
            longest = max(len(part.chunks) for part in parts)
            conds = [Cond([*part.chunks, *[[("", 1.0)]] * (longest - len(part.chunks))], part.weight) for part in parts]
            negative = Cond([[(NEGATIVE, 1.0)], *[[("", 1.0)]] * (longest - 1)])
            x = scheduler.scale_model_input(latents, timestep)

            def predict(cond: Cond, x: torch.Tensor = x, timestep: Any = timestep) -> torch.Tensor:
                return pipe.unet(x, timestep, encoder_hidden_states=encoded(pipe, cond, clip_skip)[None]).sample

            without = predict(negative)
            away = sum(cond.weight * (predict(cond) - without) for cond in conds)
            latents = scheduler.step(without + guidance * away, timestep, latents).prev_sample
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        return ((image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0) * 255).double().numpy()

    return paint


def ours(engine: Engine, prompt: str, **settings: Any) -> np.ndarray:
    made = engine.generate(prompt, NEGATIVE, **{"seed": 7, "steps": STEPS, "timestep_spacing": "trailing", **settings})
    return np.asarray(made[0], np.float64)


def psnr(one: Any, other: Any) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2), 1e-9)))


LONG = "z " * 60 + "an apple, " + "y " * 60  # 67 + 1 + 60 tokens of the tests' vocabulary

CASES: dict[str, tuple[str, Callable[[int], tuple[list[Cond], dict[str, Any]]]]] = {
    "emphasis": ("a (red:1.4) [b] apple", lambda s: ([Cond([[("a ", 1), ("red", 1.4), (" ", 1), ("b", 1 / 1.1),
                                                            (" apple", 1)]])], {})),
    "break": ("a red BREAK apple", lambda s: ([Cond([[("a red", 1)], [("apple", 1)]])], {})),
    "long": (LONG, lambda s: ([Cond([[("z " * 60 + "an apple,", 1)], [("y " * 60, 1)]])], {})),
    "from to": ("a [red:blue:3] apple", lambda s: ([plain("a red apple" if s <= 3 else "a blue apple")], {})),
    "fraction": ("a [red:0.5] apple", lambda s: ([plain("a apple" if s <= 4 else "a red apple")], {})),
    "alternate": ("a [red|blue] apple", lambda s: ([plain("a red apple" if s % 2 else "a blue apple")], {})),
    "and": ("red apple AND blue :0.5", lambda s: ([plain("red apple"), plain("blue", 0.5)], {})),
    "and of lengths": (f"red AND {LONG}", lambda s: ([plain("red"), *CASES["long"][1](s)[0]], {})),
    "tag in a schedule": ("an apple [<lora:glow:1>::4]",
                          lambda s: ([plain("an apple")], {"glow": 1} if s <= 4 else {})),
    "tags by turns": ("apple [<lora:ink:1>|<lora:glow:0.5>]",
                      lambda s: ([plain("apple")], {"ink": 1.0} if s % 2 else {"glow": 0.5})),
    "window": ("apple <lora:glow:1:stop=4>", lambda s: ([plain("apple")], {"glow": 1.0} if s <= 3 else {})),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whole_images_mean_what_the_prompt_says(engine: Engine, oracle: Oracle, case: str) -> None:
    prompt, at = CASES[case]
    theirs, ours_ = oracle(at), ours(engine, prompt)
    assert psnr(ours_, theirs) >= 50
    base = ours(engine, "an apple")
    assert psnr(base, theirs) < psnr(ours_, theirs) - 6, "the prompt shows"


def test_a_step_schedule_of_multipliers(engine: Engine, oracle: Oracle) -> None:
    """loractl: x = step / (steps - 2), interpolated; the text encoder keeps the first weight."""

    def at(step: int) -> tuple[list[Cond], dict[str, Any]]:
        return [plain("apple")], {"glow": float(np.interp((step - 1) / (STEPS - 2), [0, 0.5], [1.0, 0.2]))}

    assert psnr(ours(engine, "apple <lora:glow:1@0,0.2@0.5>"), oracle(at)) >= 50


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_reads_an_earlier_layer(engine: Engine, oracle: Oracle, skip: int) -> None:
    theirs = oracle(lambda step: ([plain("an apple")], {}), clip_skip=skip)
    assert psnr(ours(engine, "an apple", clip_skip=skip), theirs) >= 50
    with pytest.raises(RequestError, match="clip_skip is 3; this text encoder takes from 1 .* to 2"):
        engine.generate("x", clip_skip=3)


def test_embeddings_are_those_of_diffusers(tiny_bundle: Path, tiny_model: Path, styles: Path, tmp_path: Path) -> None:
    """Textual inversion beside an adapter: two vectors in place of one word."""
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(3)) * 0.3
    save_file({"emb_params": vectors}, tmp_path / "mycat.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.load_textual_inversion({"mycat": vectors}, token="mycat")
    pipe.load_lora_weights(str(styles), weight_name="ink.safetensors", adapter_name="ink")
    pipe.set_adapters(["ink"], [0.7])
    generator = torch.Generator().manual_seed(7)
    theirs = pipe(
        "a mycat apple", negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=4.0, generator=generator
    ).images[0]
    engine = Engine.open(tiny_bundle, lora_dir=styles, embeddings_dir=tmp_path, threads=1)
    made = ours(engine, "a mycat apple<lora:ink:0.7>")
    assert psnr(made, theirs) >= 50
    assert psnr(ours(engine, "a apple<lora:ink:0.7>"), theirs) < 45, "the word shows"


def test_per_image_lists_make_one_batch(engine: Engine, styles: Path) -> None:
    """Prompts, seeds, adapters and multipliers by image; each image as if alone, one call of the UNet a step."""
    ink, glow, fog = (
        engine.load_adapter(styles / name) for name in ("ink.safetensors", "deep/glow.safetensors", "fog")
    )
    prompts = ["a red apple", "blue <lora:glow:0.5>", "a (cat:1.3) AND dog", "tree"]
    adapters = [[(ink, 0.7)], [], [(fog, 1.0), (ink, -0.4)], [(glow, 0.9)]]
    seeds = [5, 90, 3, 12]
    calls: list[int] = []
    graph = engine._components.graph("unet")
    run = graph.run
    graph.run = lambda feeds: calls.append(len(feeds["sample"])) or run(feeds)
    try:
        batch = engine.generate(prompts, ["", NEGATIVE, "", ""], seed=seeds, steps=STEPS, adapters=adapters)
    finally:
        graph.run = run
    assert calls == [9] * STEPS, "four negatives, five prompts, one call a step"
    assert engine.info["runs"] == ["images 1, 2, 3, 4"]
    for row, image in enumerate(batch):
        negative = NEGATIVE if row == 1 else ""
        [alone] = engine.generate(prompts[row], negative, seed=seeds[row], steps=STEPS, adapters=adapters[row])
        assert psnr(image, alone) >= 60
        assert image.info == alone.info
    assert isinstance(batch[0], Image.Image) and batch[2].info["parameters"].startswith("a (cat:1.3) AND dog")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": ["a", "b"], "batch": 3}, "prompt 2, batch 3"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "prompt 2, seed 3"),
        ({"prompt": ["a", "b"], "adapters": [[]]}, "lists for 1 images; there are 2"),
        ({"prompt": []}, "batch is 0"),
    ],
)
def test_lists_that_do_not_match_are_refused(engine: Engine, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        engine.generate(**settings)


def test_an_embedding_that_comes_with_an_adapter_holds_while_it_acts(
    tiny_bundle: Path, styles: Path, tmp_path: Path
) -> None:
    """The same vectors from a folder of embeddings and from `bundle_emb.` inside the file of a LoRA."""
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(3)) * 0.3
    tensors = load_file(styles / "ink.safetensors")
    save_file({**tensors, "bundle_emb.mycat.emb_params": vectors}, tmp_path / "both.safetensors")
    (tmp_path / "words").mkdir()
    save_file({"emb_params": vectors}, tmp_path / "words" / "mycat.safetensors")
    engine = Engine.open(tiny_bundle, lora_dir=tmp_path, threads=1)
    both = ours(engine, "a mycat apple <lora:both:0.7>")
    assert psnr(both, ours(engine, "a mycat apple")) < 45
    apart = Engine.open(tiny_bundle, lora_dir=styles, embeddings_dir=tmp_path / "words", threads=1)
    assert np.array_equal(both, ours(apart, "a mycat apple <lora:ink:0.7>"))
    report = engine.load_adapter(tmp_path / "both.safetensors").report
    assert "bundle_emb.mycat.emb_params" in report.applied and not report.unused
