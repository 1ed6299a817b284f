"""What a file's own metadata tells of its training: kohya's `ss_` strings and Stability's `modelspec.` ones.

Any of it may be missing, edited by hand or hostile; what does not read as it should is left out.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

TAGS_KEY = "ss_tag_frequency"
TRIGGER_KEY = "modelspec.trigger_phrase"
MAX_JSON = 16 << 20  # bytes of one string that is parsed
MAX_FACT = 300  # letters of one fact
MAX_TAGS = 24  # as many as AUTOMATIC1111 shows
SENTENCE = 16  # mean letters from which tags are sentences, which are counted by word (ui_edit_user_metadata.py)


def _date(stamp: str) -> str:
    try:
        return datetime.fromtimestamp(float(stamp), UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def _same(value: str) -> str:
    return value


# What people call it -> its key and how it is read.
FACTS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "title": ("modelspec.title", _same),
    "author": ("modelspec.author", _same),
    "license": ("modelspec.license", _same),
    "description": ("modelspec.description", _same),
    "output name": ("ss_output_name", _same),
    "base model": ("ss_sd_model_name", _same),
    "base version": ("ss_base_model_version", _same),
    "architecture": ("modelspec.architecture", _same),
    "prediction": ("modelspec.prediction_type", _same),
    "network": ("ss_network_module", _same),
    "network settings": ("ss_network_args", _same),
    "dim": ("ss_network_dim", _same),
    "alpha": ("ss_network_alpha", _same),
    "resolution": ("ss_resolution", _same),
    "clip skip": ("ss_clip_skip", _same),
    "images": ("ss_num_train_images", _same),
    "epochs": ("ss_num_epochs", _same),
    "epoch": ("ss_epoch", _same),
    "steps": ("ss_steps", _same),
    "batch size": ("ss_total_batch_size", _same),
    "optimizer": ("ss_optimizer", _same),
    "learning rate": ("ss_learning_rate", _same),
    "unet learning rate": ("ss_unet_lr", _same),
    "text encoder learning rate": ("ss_text_encoder_lr", _same),
    "noise offset": ("ss_noise_offset", _same),
    "comment": ("ss_training_comment", _same),
    "began": ("ss_training_started_at", _date),
}


def facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """What people call it -> what the metadata say, of everything that they do say."""
    read = {name: value(metadata.get(key, "")).strip()[:MAX_FACT] for name, (key, value) in FACTS.items()}
    return {name: value for name, value in read.items() if value not in ("", "None", "null", "{}")}


def frequent_tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """The most frequent tags of the training images with their counts, most frequent first."""
    counted: Counter[str] = Counter()
    for folder in _object(metadata.get(TAGS_KEY, "")).values():
        for tag, count in (folder if isinstance(folder, dict) else {}).items():
            if type(count) is int and count > 0 and tag.strip():
                counted[tag.strip()] += count
    if counted and sum(map(len, counted)) / len(counted) >= SENTENCE:
        counted = _words(counted)
    return [(tag[:MAX_FACT], count) for tag, count in counted.most_common(MAX_TAGS)]


def _words(sentences: Counter[str]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for sentence, count in sentences.items():
        for word in re.findall(r"[-_\w']{3,}", sentence):
            counted[word] += count
    return counted


def _object(text: str) -> dict[str, object]:
    try:
        made = json.loads(text) if len(text) <= MAX_JSON else {}
    except (ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}
