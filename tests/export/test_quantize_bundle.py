"""Whole bundles with smaller weights: what they tell, what they compute, and adapters on top of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

import lora_edge
from lora_edge import errors
from lora_edge.arrays import Array
from lora_edge.bundle import Bundle
from lora_edge.export.verify import BOUND
from lora_edge.runtime.engine import Engine


@pytest.fixture(scope="module")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """UNet and VAE of the tiny model in 4 bits, what is not quantized stored in half precision."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "model").mkdir()
    for name in ("unet", "vae"):
        (folder / "model" / name).symlink_to(tiny_model / name)
    made: Bundle = lora_edge.export(folder / "model", folder / "bundle", quantize="int4", store="fp16")
    return made


def held(bundle: Bundle, component: str) -> dict[str, torch.Tensor]:
    """The weights that a bundle's codes stand for, under torch's names."""
    table = bundle.component(component).table
    return {f"{slot.name}.weight": torch.from_numpy(bundle.weight(component, slot.name)) for slot in table}


def test_the_manifest_tells_how_weights_lie_and_how_far_they_are(small: Bundle) -> None:
    told = small.manifest["components"]["unet"]["smaller"]
    assert told["quantize"] == "int4" and told["store"] == "fp16" and told["psnr"] > 20
    assert {told["bits"][name] for name in ("conv_in", "conv_out", "time_embedding.linear_1")} == {32}
    assert set(told["bits"].values()) == {4, 8, 32}
    assert small.manifest["components"]["vae_decoder"]["smaller"]["quantize"] is None
    assert all(slot.placement == "activation" for table in small.tables for slot in table)
    for entry in small.manifest["components"].values():
        assert all(outcome["relative"] <= BOUND for outcome in entry["verification"])


def test_an_adapters_change_is_what_diffusers_makes_on_the_same_quantized_weights(
    small: Bundle, tiny_model: Path, styles: Path
) -> None:
    engine = Engine.open(small.folder, lora_dir=styles, threads=1)
    random = torch.Generator().manual_seed(1)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    sample = torch.randn(2, pipe.unet.config.in_channels, 16, 16, generator=random)
    context = torch.randn(2, 77, pipe.unet.config.cross_attention_dim, generator=random)
    steps = torch.tensor([301, 301])
    feeds: dict[str, Array] = {
        "sample": sample.numpy(),
        "timestep": steps.numpy(),
        "encoder_hidden_states": context.numpy(),
    }
    state = pipe.unet.state_dict()
    pipe.unet.load_state_dict(state | held(small, "unet"))

    def by_torch() -> Array:
        with torch.no_grad():
            return np.asarray(pipe.unet(sample, steps, context).sample)

    base = by_torch()
    pipe.load_lora_weights(str(styles / "deep"), weight_name="glow.safetensors", adapter_name="glow")
    expected = by_torch() - base
    plain = engine.run("unet", feeds)["out_sample"]
    glow = engine.load_adapter(styles / "deep" / "glow.safetensors")
    changed = engine.run("unet", feeds, adapters=[(glow, 1.0)])
    error = np.linalg.norm(changed["out_sample"] - plain - expected) / np.linalg.norm(expected)
    assert error <= 1e-4
    assert np.abs(plain - base).max() <= BOUND * np.abs(base).max()


@pytest.mark.parametrize("asked", [{"store": "bf16"}, {"quantize": "int8"}])
def test_text_encoders_compute_as_torch_with_the_weights_that_the_bundle_tells(
    tiny_model: Path, tmp_path: Path, asked: dict[str, str]
) -> None:
    (tmp_path / "text").mkdir()
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / "text" / name).symlink_to(tiny_model / name)
    made = lora_edge.export(tmp_path / "text", tmp_path / "bundle", **asked)
    model = CLIPTextModel.from_pretrained(tiny_model / "text_encoder").eval()
    names = {name if name.startswith("text_model.") else f"text_model.{name}": name for name in model.state_dict()}
    told = {names[name]: weight for name, weight in held(made, "text_encoder").items()}
    original = model.state_dict()
    assert all(0 < (original[name] - weight).abs().max() < 0.02 for name, weight in told.items())
    model.load_state_dict(original | told)
    ids = torch.arange(77)[None]
    with torch.no_grad():
        expected = model(ids).last_hidden_state.numpy()
    got = Engine.open(made.folder).run("text_encoder", {"input_ids": ids.numpy()})["last_hidden_state"]
    assert np.abs(got - expected).max() <= BOUND * np.abs(expected).max()


@pytest.mark.parametrize("besides", [{"torch": True}, {"coreml": {}}])
def test_programs_and_packages_have_weights_of_their_own(tiny_model: Path, tmp_path: Path, besides: object) -> None:
    with pytest.raises(errors.ExportError, match="keep weights of their own"):
        lora_edge.export(tiny_model, tmp_path / "b", quantize="int8", **besides)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()
