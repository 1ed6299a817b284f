"""Prompts -> what the UNet reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.multiplier import Multiplier
from lora_edge.runtime.chunks import Chunk, chunked
from lora_edge.runtime.components import Components
from lora_edge.runtime.pairs import of_image
from lora_edge.runtime.scene import Scene
from lora_edge.runtime.swap import Swap
from lora_edge.runtime.textcache import Acting, TextCache, TextKey, spelled
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
    """The text encoder of a bundle, for one request.

    Attributes:
        words: tokenizer and embeddings.
        clip_skip: 1 reads the last layer, n the n-th from the end.
        cache: what it has encoded, in this request and those before; it does not encode it again.
    """

    bundle: Bundle
    components: Components
    swap: Swap
    words: Words
    clip_skip: int = 1
    cache: TextCache = field(default_factory=TextCache)

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
        acting = [self._acting(scene, image) for image in range(len(scene.parts))]
        wanted = [(image, chunk) for image, chunks in rows for chunk in chunks]
        keys = [TextKey(spelled(chunk, self.words), acting[image], self.clip_skip) for image, chunk in wanted]

        def make(places: Sequence[int]) -> list[FloatArray]:
            owners = np.array([wanted[place][0] for place in places], np.int64)
            feeds = self.swap.feeds(TEXT_ENCODER, scene.adapters, rows=len(scene.parts), owners=owners)
            return self._run([wanted[place][1] for place in places], feeds)

        states = iter(self.cache.states(keys, make))
        return [[emphasized(next(states), chunk.weights) for chunk in chunks] for _, chunks in rows]

    def _run(self, chunks: Sequence[Chunk], feeds: Mapping[str, Array]) -> list[FloatArray]:
        ids = np.concatenate([self.words.tokenizer.framed(chunk.ids) for chunk in chunks])
        taught = {TOKENS: self.words.tokens} if self.words.used else {}
        outputs = self.components.run(TEXT_ENCODER, {"input_ids": ids}, {**feeds, **taught})
        return [np.array(state) for state in self._skipped(outputs, feeds)]  # a copy keeps one chunk, not all of them

    def _acting(self, scene: Scene, image: int) -> tuple[Acting, ...]:
        """How the adapters of the text encoder act on one image."""
        own = [(adapter, Multiplier.of(of_image(strength, image))) for adapter, strength in scene.adapters]
        return tuple(
            Acting(self.cache.numbers.of(adapter), one.number(TEXT_ENCODER), one.blocks)
            for adapter, one in own
            if TEXT_ENCODER in adapter.components and one.number(TEXT_ENCODER)
        )

    def _skipped(self, outputs: Mapping[str, FloatArray], feeds: Mapping[str, Array]) -> FloatArray:
        """The layer that clip skip asks for, behind the final norm in any case (as Stable Diffusion 1 reads it)."""
        if self.clip_skip == 1:
            return outputs["last_hidden_state"]
        component = self.bundle.component(TEXT_ENCODER)
        layer = component.config["num_hidden_layers"] + 1 - self.clip_skip
        if (normed := f"normed_states.{layer}") in outputs:
            return outputs[normed]
        if (raw := f"hidden_states.{layer}") not in outputs:
            raise RequestError("this text encoder gives its last layer alone; leave clip skip at 1")
        norms = {**component.norms(), **feeds}
        state = outputs[raw]
        centred = state - state.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + component.config.get("layer_norm_eps", 1e-5))
        made: FloatArray = centred / spread * norms[f"{FINAL_NORM}.weight"] + norms[f"{FINAL_NORM}.bias"]
        return made.astype(np.float32)


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
