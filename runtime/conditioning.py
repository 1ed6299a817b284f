"""Prompts -> what the UNet reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.runtime.chunks import Chunk, chunked
from lora_edge.runtime.components import Components
from lora_edge.runtime.scene import Scene
from lora_edge.runtime.swap import Swap, of_image
from lora_edge.runtime.words import Words
from lora_edge.slots import TOKENS

TEXT_ENCODER = "text_encoder"
FINAL_NORM = "text_model.final_layer_norm"
LEAST_MEAN = 1e-6  # of what emphasis keeps, beside the size of the numbers


@dataclass(frozen=True)
class Condition:
    """A batch as the UNet reads it.

    Attributes:
        context: [batch rows, tokens, dim] float32; where there is guidance the negative prompts come first.
        owners: [batch rows] int64, the image that each row belongs to.
        weights: [rows of prompts] float32, the weight of each part of a prompt.
    """

    context: FloatArray
    owners: IntArray
    weights: FloatArray


@dataclass
class TextModel:
    """The text encoder of a bundle, for one request; what it has encoded it does not encode again.

    Attributes:
        words: tokenizer and embeddings.
        clip_skip: 1 reads the last layer, n the n-th from the end.
    """

    bundle: Bundle
    components: Components
    swap: Swap
    words: Words
    clip_skip: int = 1
    _known: dict[tuple[Chunk, str], FloatArray] = field(default_factory=dict)

    def condition(self, scene: Scene, guided: bool) -> Condition:
        """Encode every text of a scene, all that is new of it in one call.

        Args:
            guided: whether the negative prompts are read too.
        """
        texts = [(image, part) for image, part in enumerate(scene.negatives)] if guided else []
        prompts = [(image, part) for image, parts in enumerate(scene.parts) for part in parts]
        rows = [(image, chunked(part.chunks, self.words)) for image, part in [*texts, *prompts]]
        longest = max(len(chunks) for _, chunks in rows)
        rows = [(image, [*chunks, *[Chunk()] * (longest - len(chunks))]) for image, chunks in rows]
        states = self._encode(scene, rows)
        return Condition(
            np.stack([np.concatenate(row) for row in states]),
            np.array([image for image, _ in rows], np.int64),
            np.array([part.weight for _, part in prompts], np.float32),
        )

    def _encode(self, scene: Scene, rows: Sequence[tuple[int, Sequence[Chunk]]]) -> list[list[FloatArray]]:
        """[tokens, dim] of every chunk of every row."""
        acting = [_seen(scene, image) for image in range(len(scene.parts))]
        missing = {
            (chunk, acting[image]): image
            for image, chunks in rows
            for chunk in chunks
            if (chunk, acting[image]) not in self._known
        }
        if missing:
            owners = np.array(list(missing.values()), np.int64)
            feeds = self.swap.feeds(TEXT_ENCODER, scene.adapters, rows=len(scene.parts), owners=owners)
            made = self._run([chunk for chunk, _ in missing], feeds)
            self._known.update(zip(missing, made, strict=True))
        return [[self._known[chunk, acting[image]] for chunk in chunks] for image, chunks in rows]

    def _run(self, chunks: Sequence[Chunk], feeds: Mapping[str, Array]) -> list[FloatArray]:
        ids = np.concatenate([self.words.tokenizer.framed(chunk.ids) for chunk in chunks])
        taught = {TOKENS: self.words.tokens} if self.words.used else {}
        outputs = self.components.run(TEXT_ENCODER, {"input_ids": ids}, {**feeds, **taught})
        states = self._skipped(outputs, feeds)
        return [emphasized(state, chunk.weights) for state, chunk in zip(states, chunks, strict=True)]

    def _skipped(self, outputs: Mapping[str, FloatArray], feeds: Mapping[str, Array]) -> FloatArray:
        """The layer that clip skip asks for, behind the final norm in any case (as Stable Diffusion 1 reads it)."""
        if self.clip_skip == 1:
            return outputs["last_hidden_state"]
        component = self.bundle.component(TEXT_ENCODER)
        norms = {**component.norms(), **feeds}
        if layers(outputs) < self.clip_skip:
            raise RequestError("this text encoder gives its last layer alone; leave clip skip at 1")
        state = outputs[f"hidden_states.{layers(outputs) + 1 - self.clip_skip}"]
        centred = state - state.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + component.config.get("layer_norm_eps", 1e-5))
        made: FloatArray = centred / spread * norms[f"{FINAL_NORM}.weight"] + norms[f"{FINAL_NORM}.bias"]
        return made.astype(np.float32)


def layers(outputs: Mapping[str, Array]) -> int:
    """Layers of a text encoder, by its outputs (the first hidden state is the embedding)."""
    return sum(name.startswith("hidden_states.") for name in outputs) - 1


def check_clip_skip(clip_skip: int, config: Mapping[str, int]) -> int:
    """Refuse a layer that the text encoder does not have.

    Raises:
        RequestError: with the range.
    """
    count = config["num_hidden_layers"]
    if not isinstance(clip_skip, int) or not 1 <= clip_skip <= count:
        raise RequestError(f"clip_skip is {clip_skip}; this text encoder takes from 1 (its last layer) to {count}")
    return clip_skip


def emphasized(state: FloatArray, weights: Sequence[float]) -> FloatArray:
    """Emphasis, as AUTOMATIC1111's "Original" (modules/sd_emphasis.py): weighted, then scaled back to the same mean.

    Args:
        state: [tokens, dim] float32, with the start token first.
        weights: of the tokens behind it; what remains has weight 1.
    """
    if all(weight == 1 for weight in weights):
        return state
    column = np.ones((len(state), 1), np.float32)
    column[1 : len(weights) + 1, 0] = weights
    weighted = state * column
    mean = weighted.mean(dtype=np.float64)
    if abs(mean) < LEAST_MEAN * np.abs(weighted).mean(dtype=np.float64):
        return weighted  # an encoder whose outputs have no mean: their ratio would be rounding alone
    made: FloatArray = weighted * np.float32(state.mean(dtype=np.float64) / mean)
    return made


def _seen(scene: Scene, image: int) -> str:
    """How the adapters of the text encoder act on one image."""
    made = []
    for adapter, strength in scene.adapters:
        if TEXT_ENCODER in adapter.components:
            made.append((id(adapter), repr(of_image(strength, image))))
    return repr(made)
