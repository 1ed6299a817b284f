"""The tokenizer equals transformers' `CLIPTokenizer`, on text nobody would write.

The vocabulary is trained here, in the layout of CLIP's: bytes, bytes that end a word, merges, start, end.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import CLIPTokenizer

from lora_edge.errors import BundleDamaged, RequestError
from lora_edge.runtime.tokenizer import END, START, Tokenizer

EMOJI = Path(__file__).parents[2] / "examples" / "emoji" / "model" / "tokenizer"
NORMALIZED = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
SHIPPED = {  # special_tokens_map.json of Stable Diffusion 1.5
    "bos_token": {"content": START, **NORMALIZED},
    "eos_token": {"content": END, **NORMALIZED},
    "pad_token": END,
    "unk_token": {"content": END, **NORMALIZED},
}
PLAIN = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
BANG = SHIPPED | {"pad_token": "!"}  # Stable Diffusion 2

# First and last code point of blocks with case, marks, ligatures, joining, digits, spaces, controls.
BLOCKS = [
    (0x20, 0x7E), (0x00, 0x1F), (0x7F, 0xA0), (0xA1, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F),
    (0x20A0, 0x20CF), (0x2100, 0x218F), (0x2190, 0x21FF), (0x2460, 0x24FF), (0x2600, 0x27BF), (0x3000, 0x303F),
    (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xAD00), (0xE000, 0xE010), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF), (0x10330, 0x1034F), (0x10400, 0x1044F), (0x1D400, 0x1D4FF), (0x1F1E6, 0x1F1FF),
    (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x20010), (0xE0100, 0xE0110),
]  # fmt: skip
PIECES = [
    "a photo of a red apple", "the cat", "It's", "we'll", "I'VE", "don't", "they're", "i'm", "he'd", "'S", "'s", "''",
    "rock'n'roll", "3.14", "007", "1,000", "x²", "½", "İstanbul", "STRASSE", "straße", "ﬁne", "ΑΣ", "ς", "e\u0301",
    "\u0065\u0323\u0307", "한국어", "日本語", "中文字符", "עברית", "العربية", "हिन्दी", "ไทย", "👩‍👩‍👧", "🏳️‍🌈", "❤️",
    "👍🏽", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u200b", "\ufeff", "\x00", "\x1c", "\x85", "!",
    "!!", "?!", ",", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endoftext", "</w>", "<lora:ink:0.8>",
    "(word:1.2)", "[a|b]", "_", "__init__", "a_b", "--", "…", "“quoted”", "&amp;", "http://x.y/z?q=1", "C++", "#tag",
    "@me", "$5", "50%",
]  # fmt: skip


def strings(count, seed):
    chance = random.Random(seed)

    def piece():
        if chance.random() < 0.5:
            return chance.choice(PIECES)
        low, high = chance.choice(BLOCKS)
        return "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 6)))

    for _ in range(count):
        yield chance.choice(["", " "]).join(piece() for _ in range(chance.randint(0, 8)))


def write(folder, name, contents):
    (folder / name).write_text(contents if isinstance(contents, str) else json.dumps(contents), encoding="utf-8")


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A folder with vocab.json and merges.txt of 2,000 merges, trained on the strings above."""
    bpe = Backend(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2512, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(strings(3000, seed=1), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = ["!", *(letter for letter in alphabet if letter != "!")]  # "!" has id 0 in CLIP
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), START, END]
    folder = tmp_path_factory.mktemp("vocabulary")
    write(folder, "vocab.json", {piece: number for number, piece in enumerate(dict.fromkeys(pieces))})
    write(folder, "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    return folder


@pytest.fixture
def folder(vocabulary, tmp_path):
    """A copy to write settings into."""
    for name in ("vocab.json", "merges.txt"):
        write(tmp_path, name, (vocabulary / name).read_text(encoding="utf-8"))
    return tmp_path


def check(folder, count, seed=2):
    ours, theirs = Tokenizer.open(folder), CLIPTokenizer.from_pretrained(folder)
    texts = list(strings(count, seed))
    expected = theirs(texts, add_special_tokens=False).input_ids
    wrong = [text for text, ids in zip(texts, expected, strict=True) if ours.encode(text) != ids]
    assert not wrong, f"{len(wrong)} of {count} differ, first {wrong[0]!r}"
    framed = theirs(
        texts[:2000], padding="max_length", max_length=ours.max_length, truncation=True, return_tensors="np"
    ).input_ids
    room = ours.max_length - 2
    made = np.concatenate([ours.framed(ours.encode(text)[:room]) for text in texts[:2000]])
    np.testing.assert_array_equal(made, framed)
    return ours, theirs


def test_ten_thousand_strings(folder):
    write(folder, "tokenizer_config.json", PLAIN | {"model_max_length": 77})
    ours, theirs = check(folder, 10_000)
    assert (ours.start, ours.end, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


SETTINGS = {
    "config only": ({"model_max_length": 20} | PLAIN, None),
    "as shipped with 1.5": ({"model_max_length": 77, "do_lower_case": True, **SHIPPED, "errors": "replace"}, SHIPPED),
    "as shipped with 2": ({"model_max_length": 77, "pad_token": END}, BANG),
    "plain bang": ({"model_max_length": 77}, PLAIN | {"pad_token": "!"}),
    "map only": (None, SHIPPED),
    "decoder": (
        {
            "model_max_length": 77,
            "added_tokens_decoder": {
                "0": {"content": "!", **NORMALIZED, "normalized": False, "special": True},
                "2510": {"content": START, **NORMALIZED, "special": True},
            },
            **PLAIN,
            "pad_token": "!",
        },
        SHIPPED,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(folder, name):
    config, special = SETTINGS[name]
    for file, contents in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        if contents is not None:
            write(folder, file, contents)
    if config is None:  # transformers knows no length then; CLIP's is 77
        assert Tokenizer.open(folder).max_length == 77
    check(folder, 1500)


def test_added_tokens(folder):
    write(folder, "tokenizer_config.json", PLAIN | {"model_max_length": 77})
    size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    write(folder, "added_tokens.json", {"the cat": size, "<ink>": size + 1})
    ours, theirs = check(folder, 1500)
    assert ours.encode("the cat, <ink>") == theirs("the cat, <ink>", add_special_tokens=False).input_ids
    assert size in ours.encode("The Cat")


@pytest.mark.parametrize("special", [PLAIN, BANG])
def test_only_tokenizer_json(folder, tmp_path_factory, special):
    write(folder, "special_tokens_map.json", special)
    write(folder, "tokenizer_config.json", {"model_max_length": 30})
    saved = tmp_path_factory.mktemp("saved")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} >= {"tokenizer.json"} and not (saved / "vocab.json").exists()
    ours, _ = check(saved, 1500)
    assert ours.max_length == 30
    assert all(ours.encode(text) == Tokenizer.open(folder).encode(text) for text in strings(200, seed=3))


@pytest.mark.skipif(not EMOJI.exists(), reason="the example model is not there")
def test_example_model():
    check(EMOJI, 2000)


def test_what_does_not_fit_is_refused(folder):
    write(folder, "tokenizer_config.json", {"model_max_length": 6})
    tokenizer = Tokenizer.open(folder)
    framed = tokenizer.framed([1, 2])
    assert framed.tolist() == [[tokenizer.start, 1, 2, tokenizer.end, tokenizer.pad, tokenizer.pad]]
    assert framed.dtype == np.int64
    with pytest.raises(RequestError, match="5 tokens do not fit: the text encoder reads 4"):
        tokenizer.framed([1, 2, 3, 4, 5])


def test_half_a_surrogate_pair(folder):
    with pytest.raises(RequestError, match="not valid Unicode"):
        Tokenizer.open(folder).encode("\ud800")


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("vocab.json", None, "no vocab.json"),
        ("merges.txt", None, "no merges.txt"),
        ("vocab.json", "{", "cannot be read"),
        ("vocab.json", "[]", "cannot be read"),
        ("merges.txt", "one\ntwo three four\n", "cannot be read"),
        ("merges.txt", "zz qq\n", "cannot be built"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "is a T5Tokenizer; only CLIP's"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length"),
        ("special_tokens_map.json", "\x00", "special_tokens_map.json"),
    ],
)
def test_broken_folders(folder, name, contents, says):
    if contents is None:
        (folder / name).unlink()
    else:
        write(folder, name, contents)
    with pytest.raises(BundleDamaged, match=says):
        Tokenizer.open(folder)


def test_broken_tokenizer_json(tmp_path):
    write(tmp_path, "tokenizer.json", {"model": {"vocab": {}}})
    with pytest.raises(BundleDamaged, match="cannot be read"):
        Tokenizer.open(tmp_path)
