"""The text side: a CLIP-style byte-level BPE tokenizer of our own, and a small CLIP text encoder."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 32
MERGES = 900

# Words that captions of base training lack but that adapters and curious people will use.
MORE_WORDS = (Path(__file__).parent / "more_words.txt").read_text().split()


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Learns merges from captions and writes `vocab.json` and `merges.txt` as CLIP's tokenizer reads them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    clip_words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(clip_words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([*captions, *MORE_WORDS * 50], trainer)
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *dict.fromkeys("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
                "model_max_length": POSITIONS,
                "do_lower_case": True,
                "add_prefix_space": False,
                "errors": "replace",
            },
            indent=2,
        )
        + "\n"
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}, indent=2) + "\n"
    )
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, 128 wide; tells the end of the text by the id of its token."""
    end = tokenizer.eos_token_id
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def encode(tokenizer: CLIPTokenizer, texts: list[str]):
    """Texts -> int64 ids [n, POSITIONS], ended and padded with the end token."""
    return tokenizer(texts, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt").input_ids
