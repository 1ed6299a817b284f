"""A tiny Stable Diffusion with random weights, its bundle, and adapters for it, all made once a run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import lora_edge
from lora_edge.bundle import Bundle
from lora_edge.runtime.engine import Engine

WIDTH = 64  # of the text encoder
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models lose by threads, and sums come out the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def byte_vocabulary() -> dict[str, int]:
    """CLIP's tokenizer without merges: every byte, every byte at the end of a word, start and end of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(byte_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def stir_norms(model: torch.nn.Module) -> None:
    """Norms as training leaves them: a fresh one has weight 1 and bias 0, and its outputs the mean 0."""
    noise = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
            module.weight.data = 1 + 0.2 * torch.randn(module.weight.shape, generator=noise)
            module.bias.data = 0.1 + 0.2 * torch.randn(module.bias.shape, generator=noise)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1 architecture, 0.8 M parameters, 64 x 64 pixels, random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    stir_norms(unet)
    stir_norms(text_encoder)
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    ).save_pretrained(folder / "vae")
    DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model, programs for torch too; tests must not write into it."""
    folder: Path = tmp_path_factory.mktemp("bundle") / "tiny"
    made: Bundle = lora_edge.export(tiny_model, folder, torch=True)
    assert made.folder == folder
    return folder


def randomize(module: torch.nn.Module, seed: int) -> None:
    """peft starts `lora_B` at zero; an adapter that changes nothing would test nothing."""
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            scale = 0.3 if "lora_B" in name else parameter.shape[1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=noise) * scale


@pytest.fixture(scope="session")
def styles(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ink` (diffusers, UNet and text encoder), `glow` (kohya, convs too) and `fog` (a PEFT folder)."""
    folder = tmp_path_factory.mktemp("styles")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    states = {}
    for seed, (name, targets) in enumerate(
        {"ink": [*ATTENTION, "ff.net.2"], "glow": [*ATTENTION, "conv1", "conv_shortcut"], "fog": ATTENTION}.items()
    ):
        config = LoraConfig(r=4 + seed, lora_alpha=4 + seed, target_modules=targets)
        pipe.unet.add_adapter(config, name)
        randomize(pipe.unet, seed)
        states[name] = get_peft_model_state_dict(pipe.unet, adapter_name=name)
        if name == "fog":
            peft_folder = folder / "fog"
            peft_folder.mkdir()
            config.save_pretrained(str(peft_folder))
            named = {f"base_model.model.{key}": tensor for key, tensor in states[name].items()}
            save_file(
                {key: tensor.contiguous() for key, tensor in named.items()}, peft_folder / "adapter_model.safetensors"
            )
        pipe.unet.delete_adapters(name)
    pipe.text_encoder.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "fc1"]), "ink")
    randomize(pipe.text_encoder, 9)
    text = get_peft_model_state_dict(pipe.text_encoder, adapter_name="ink")
    StableDiffusionPipeline.save_lora_weights(
        folder, states["ink"], text, weight_name="ink.safetensors", safe_serialization=True
    )
    (folder / "deep").mkdir()
    kohya = convert_state_dict_to_kohya({f"unet.{key}": tensor for key, tensor in states["glow"].items()})
    save_file({key: tensor.contiguous() for key, tensor in kohya.items()}, folder / "deep" / "glow.safetensors")
    return folder


@pytest.fixture(scope="session")
def engine(tiny_bundle: Path, styles: Path) -> Engine:
    return Engine.open(tiny_bundle, lora_dir=styles, threads=1)


@pytest.fixture(scope="session")
def emoji_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the demo model; tests must not write into it."""
    source = Path(__file__).parent.parent / "examples" / "emoji" / "model"
    made: Bundle = lora_edge.export(source, tmp_path_factory.mktemp("emoji") / "emoji")
    return made.folder
