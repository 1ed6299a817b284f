"""Textual inversion files as their programs write them, against what diffusers reads from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from safetensors.torch import load_file, save_file

from lora_edge.embedding import Embedding
from lora_edge.embeddingfile import bundled_embeddings, check_width, is_embedding, read_embeddings
from lora_edge.errors import AdapterFileDamaged, AdapterMismatch, AdapterValueError, UnknownKind
from lora_edge.tensorfile import TensorFile
from lora_edge.tools.convert import convert

BUNDLES = {
    "SD1": {"text_encoder": 768},
    "SD2": {"text_encoder": 1024},
    "SDXL": {"text_encoder": 768, "text_encoder_2": 1280},
}


class NoTokens:
    """A tokenizer that knows no word yet."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


def as_diffusers_reads(path: Path) -> dict[str, Any]:
    """Token -> vectors of a file of one word."""
    tokens, vectors = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings(
        [None], [load_file(path)], NoTokens()
    )  # fmt: skip
    return {token: vector.numpy().reshape(-1, vector.shape[-1]) for token, vector in zip(tokens, vectors, strict=True)}


def assert_same(made: tuple[Embedding, ...], wanted: dict[str, dict[str, Any]]) -> None:
    """Word -> component -> [n, width] tensor."""
    assert {each.name for each in made} == {*wanted} and len(made) == len(wanted)
    for each in made:
        assert each.vectors.keys() == wanted[each.name].keys()
        for component, tensor in wanted[each.name].items():
            array = each.vectors[component]
            assert array.dtype == np.float32 and array.ndim == 2
            assert np.array_equal(array, torch.as_tensor(tensor).detach().float().numpy().reshape(array.shape))


@pytest.mark.parametrize("shape", [(768,), (1, 768), (4, 768)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_diffusers_trains(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "learned_embeds-steps-500.safetensors"
    save_file({"<cat-toy>": torch.randn(shape).to(dtype)}, path)
    if dtype == torch.bfloat16:  # numpy cannot hold what diffusers gives
        assert_same(read_embeddings(path), {"<cat-toy>": {"text_encoder": load_file(path)["<cat-toy>"]}})
        return
    wanted = {token: {"text_encoder": vectors} for token, vectors in as_diffusers_reads(path).items()}
    assert_same(read_embeddings(path), wanted)


def test_a_token_in_brackets_is_a_name_beside_the_files(tmp_path: Path) -> None:
    vectors = torch.randn(2, 768)
    save_file({"<cat-toy>": vectors}, tmp_path / "my cat.safetensors")
    made = read_embeddings(tmp_path / "my cat.safetensors")
    assert_same(made, {name: {"text_encoder": vectors} for name in ("my cat", "<cat-toy>")})
    save_file({"sks": vectors}, tmp_path / "learned_embeds.safetensors")
    assert_same(read_embeddings(tmp_path / "learned_embeds.safetensors"), {"sks": {"text_encoder": vectors}})


def test_several_tokens_are_several_words(tmp_path: Path) -> None:
    tokens = {"<a>": torch.randn(2, 64), "<b>": torch.randn(5, 64)}
    save_file(tokens, tmp_path / "learned_embeds.safetensors")
    made = read_embeddings(tmp_path / "learned_embeds.safetensors")
    assert_same(made, {token: {"text_encoder": vectors} for token, vectors in tokens.items()})


@pytest.mark.parametrize("key", ["emb_params", "weight", "*", "tensor", "clip_l", "some.name"])
def test_one_tensor_goes_by_the_files_name(key: str, tmp_path: Path) -> None:
    vectors = torch.randn(3, 1024)
    save_file({key: vectors}, tmp_path / "bad hands v1.5.safetensors")
    made = read_embeddings(tmp_path / "bad hands v1.5.safetensors")
    assert_same(made, {"bad hands v1.5": {"text_encoder": vectors}})
    assert made[0].nbytes == 3 * 1024 * 4


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("holder", [dict, torch.nn.ParameterDict])
def test_what_automatic1111_trains_once_it_is_converted(holder: Any, zipped: bool, tmp_path: Path) -> None:
    vectors = torch.nn.Parameter(torch.randn(2, 768))
    tree = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": holder({"*": vectors}),
        "name": "other",
        "step": 5,
    }
    torch.save(tree, tmp_path / "ink.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(AdapterFileDamaged, match="lora-edge convert"):
        read_embeddings(tmp_path / "ink.pt")
    made = convert(tmp_path / "ink.pt", tmp_path / "ink.safetensors")
    assert made.tensors == 2
    assert_same(read_embeddings(made.path), {"ink": {"text_encoder": vectors}})


def test_learned_embeds_bin(tmp_path: Path) -> None:
    vectors = torch.randn(768)
    torch.save({"<cat-toy>": vectors}, tmp_path / "learned_embeds.bin")
    made = convert(tmp_path / "learned_embeds.bin", tmp_path / "learned_embeds.safetensors")
    assert_same(read_embeddings(made.path), {"<cat-toy>": {"text_encoder": vectors}})


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxl(keys: tuple[str, str], tmp_path: Path) -> None:
    small, large = torch.randn(4, 768).half(), torch.randn(4, 1280).half()
    save_file(dict(zip(keys, (small, large), strict=True)), tmp_path / "neg.safetensors")
    made = read_embeddings(tmp_path / "neg.safetensors")
    assert_same(made, {"neg": {"text_encoder": small, "text_encoder_2": large}})


def test_one_text_encoder_of_sdxl(tmp_path: Path) -> None:
    vectors = torch.randn(1, 1280)
    save_file({"clip_g": vectors}, tmp_path / "neg.safetensors")
    assert_same(read_embeddings(tmp_path / "neg.safetensors"), {"neg": {"text_encoder_2": vectors}})


def test_words_bundled_with_a_lora(tmp_path: Path) -> None:
    vectors = {name: torch.randn(2, width) for name, width in zip("abcd", (768, 768, 768, 1280), strict=True)}
    tensors = {
        "lora_unet_x.lora_up.weight": torch.ones(2, 2),
        "bundle_emb.one word.emb_params": vectors["a"],
        "bundle_emb.ink.string_to_param.*": vectors["b"],
        "bundle_emb.ink.string_to_token.*": torch.tensor(265),
        "bundle_emb.xl.clip_l": vectors["c"],
        "bundle_emb.xl.clip_g": vectors["d"],
        "bundle_emb.cat.<cat-toy>": vectors["a"][0].clone(),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    file = TensorFile.open(tmp_path / "style.safetensors")
    names = [name for name in file.names if name.startswith("bundle_emb.")]
    assert_same(bundled_embeddings(file, names, file.path), {
        "one word": {"text_encoder": vectors["a"]},
        "ink": {"text_encoder": vectors["b"]},
        "xl": {"text_encoder": vectors["c"], "text_encoder_2": vectors["d"]},
        "cat": {"text_encoder": vectors["a"][0]},
    })  # fmt: skip
    assert bundled_embeddings(file, [], file.path) == ()
    assert not is_embedding(file.names, file.shape)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"bundle_emb.x.emb_params": torch.ones(2, 3, 4)},
            r"of shape \[2, 3, 4\] in F32; a word is at most 1000 vectors",
        ),
        ({"bundle_emb.x.emb_params": torch.ones(2, 3, dtype=torch.int32)}, r"of shape \[2, 3\] in I32"),
        ({"bundle_emb.x.string_to_token.*": torch.ones(1)}, "different numbers of vectors for one word: none at all"),
        ({"bundle_emb..emb_params": torch.ones(2, 3)}, "teaches the word '', which no prompt can spell"),
        ({"bundle_emb.a\nb.emb_params": torch.ones(2, 3)}, r"teaches the word 'a\\nb'"),
        ({"bundle_emb.x.a": torch.ones(1, 3), "bundle_emb.x.b": torch.ones(1, 3)}, "gives the text_encoder two sets"),
    ],
)
def test_bundled_words_that_are_refused(tensors: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "style.safetensors")
    file = TensorFile.open(tmp_path / "style.safetensors")
    with pytest.raises(AdapterMismatch, match=sentence):
        bundled_embeddings(file, file.names, file.path)


@pytest.mark.parametrize(
    ("tensors", "error", "sentence"),
    [
        ({}, UnknownKind, "is no textual inversion: it holds nothing"),
        ({"a.lora_up.weight": torch.ones(2, 2)}, UnknownKind, "it holds 'a.lora_up.weight'"),
        ({"emb_params": torch.ones(2, 3, 4)}, UnknownKind, "is no textual inversion"),
        ({"emb_params": torch.ones(1001, 4)}, UnknownKind, "is no textual inversion"),
        ({"emb_params": torch.ones(0, 4)}, UnknownKind, "is no textual inversion"),
        ({"emb_params": torch.tensor(1.0)}, UnknownKind, "is no textual inversion"),
        ({"a": torch.ones(1, 3), "string_to_param.a": torch.ones(1, 3)}, UnknownKind, "is no textual inversion"),
        ({"<a>": torch.ones(1, 3), "clip_l": torch.ones(1, 3)}, UnknownKind, "is no textual inversion"),
        ({"emb_params": torch.ones(1, 4, dtype=torch.int64)}, AdapterMismatch, "in I64; a word is at most"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, AdapterMismatch, "has different numbers of"),
        ({"clip_l": torch.ones(2, 768), "text_encoders_0": torch.ones(2, 768)}, AdapterMismatch, "two sets of vectors"),
        ({"emb_params": torch.tensor([[1.0, float("nan")]])}, AdapterValueError, "not finite in 'emb_params'"),
        ({"emb_params": torch.tensor([[1e300]], dtype=torch.float64)}, AdapterValueError, "not finite"),
    ],
)  # fmt: skip
def test_what_is_refused(tensors: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(error, match=sentence):
        read_embeddings(tmp_path / "x.safetensors")


def test_models_and_adapters_are_no_embeddings(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)).state_dict()
    lora = {"lora_unet_x.lora_down.weight": (4, 320), "lora_unet_x.lora_up.weight": (320, 4), "lora_unet_x.alpha": ()}
    for shapes in ({name: tuple(tensor.shape) for name, tensor in model.items()}, lora):
        assert not is_embedding(shapes, shapes.__getitem__)
    assert not is_embedding({"token_embedding.weight"}, lambda name: (49408, 768))


@pytest.mark.parametrize("family", BUNDLES)
def test_a_word_of_the_bundles_own_family(family: str) -> None:
    check_width(zeros(BUNDLES[family]), BUNDLES[family])


@pytest.mark.parametrize(
    ("widths", "family", "made_for", "has"),
    [
        (BUNDLES["SDXL"], "SD1", "SDXL (width 1280)", "this bundle has no text_encoder_2"),
        (
            {"text_encoder_2": 9},
            "SDXL",
            "another model (nothing for text_encoder)",
            "this bundle's text_encoder has width 768",
        ),
        (BUNDLES["SD1"], "SDXL", "SD1 (nothing for text_encoder_2)", "this bundle's text_encoder_2 has width 1280"),
        (BUNDLES["SD2"], "SD1", "SD2 (width 1024)", "this bundle's text_encoder has width 768"),
        ({"text_encoder": 1280}, "SD1", "SDXL (width 1280)", "this bundle's text_encoder has width 768"),
        ({"text_encoder": 32}, "SD1", "another model (width 32)", "this bundle's text_encoder has width 768"),
    ],
)
def test_a_word_of_another_family(widths: dict[str, int], family: str, made_for: str, has: str) -> None:
    with pytest.raises(AdapterMismatch) as caught:
        check_width(zeros(widths), BUNDLES[family])
    assert str(caught.value) == f"the embedding 'ink' was made for {made_for}, {has}"


def zeros(widths: dict[str, int]) -> Embedding:
    return Embedding("ink", {component: np.zeros((2, width), np.float32) for component, width in widths.items()})
