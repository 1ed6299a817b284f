"""Prompts -> what the UNet reads."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from lora_edge.arrays import Array, FloatArray
from lora_edge.runtime.components import Components
from lora_edge.runtime.tokenizer import Tokenizer

log = logging.getLogger("lora_edge")


def encode(
    components: Components, tokenizer: Tokenizer, texts: Sequence[str], feeds: Mapping[str, Array]
) -> FloatArray:
    """Encode texts in one call.

    Args:
        texts: without tags; what is longer than the text encoder reads is cut off, with a warning that quotes it.
        feeds: adapter inputs of the text encoder; they act on the negative prompt too.

    Returns:
        [texts, tokens, dim] float32, the last hidden state.
    """
    padded = [tokenizer.padded(text) for text in texts]
    for one in padded:
        if one.dropped:
            log.warning("the text encoder reads %d tokens; it does not see: %s", tokenizer.max_length, one.dropped)
    ids = np.concatenate([one.ids for one in padded])
    states = components.run("text_encoder", {"input_ids": ids}, feeds)
    return states["last_hidden_state"]
