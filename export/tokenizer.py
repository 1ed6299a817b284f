"""Tokenizer files for the bundle: vocab.json and merges.txt, whichever way the checkpoint keeps them."""

import json
import shutil
from pathlib import Path

from lora_edge.errors import CheckpointError
from lora_edge.jsonfile import read_object

_KEPT = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")


def write_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer folder; transformers 5 saves tokenizer.json alone, from which the two others are written.

    Raises:
        CheckpointError: the folder has neither form.
    """
    target.mkdir(parents=True)
    for name in _KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (target / "vocab.json").is_file() and (target / "merges.txt").is_file():
        return
    if not (target / "tokenizer.json").is_file():
        raise CheckpointError(f"{source} has neither vocab.json and merges.txt nor tokenizer.json")
    try:
        model = read_object(target / "tokenizer.json", CheckpointError)["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocab = json.dumps(model["vocab"], ensure_ascii=False)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{source / 'tokenizer.json'} is not a byte-pair tokenizer: {error!r}") from error
    (target / "vocab.json").write_text(vocab, encoding="utf-8")
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
