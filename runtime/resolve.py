"""From names to things: the adapters and the embeddings that a request calls."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lora_edge.adapter import Adapter
from lora_edge.bundle import Bundle
from lora_edge.embedding import Embedding
from lora_edge.embeddinglibrary import EmbeddingLibrary
from lora_edge.errors import RequestError
from lora_edge.fewsteps import advice
from lora_edge.library import Library
from lora_edge.runtime.conditioning import TEXT_ENCODER, check_clip_skip
from lora_edge.runtime.pairs import Pair
from lora_edge.runtime.request import Request
from lora_edge.runtime.scene import scenes
from lora_edge.runtime.tokenizer import Tokenizer
from lora_edge.runtime.words import Words

log = logging.getLogger("lora_edge")


class Resolver:
    """Looks up what requests name.

    Args:
        bundle: whose text encoder reads the prompts.
        load: reads an adapter, or takes it from where it is kept.
        lora_dir: where tags look adapters up, None where nothing says it.
        embeddings_dir: a folder of embeddings, None for none.
    """

    def __init__(
        self, bundle: Bundle, load: Callable[[Path], Adapter], lora_dir: Path | None, embeddings_dir: Path | None
    ) -> None:
        self._bundle, self._load, self._lora_dir = bundle, load, lora_dir
        self._libraries: dict[Path, Library] = {}
        self._embeddings = EmbeddingLibrary(embeddings_dir) if embeddings_dir is not None else None
        self._told: set[Path] = set()
        self._advised: set[str] = set()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.open(self._bundle.folder / "tokenizer")

    def resolve(self, request: Request, adapters: Sequence[Pair], lora_dir: Path | None = None) -> Request:
        """The request with its story and its words; all of it or nothing.

        Args:
            adapters: given beside the tags.
            lora_dir: in place of the usual folder.

        Raises:
            AdapterError: a name that is not there, or a file that cannot be used.
            RequestError: tags without a folder to look in, or a clip skip beyond the text encoder.
        """
        config = self._bundle.component(TEXT_ENCODER).config
        check_clip_skip(request.clip_skip, config)
        names = dict.fromkeys(call.name for prompt in request.prompts for call in prompt.calls)
        called = self._called(list(names), lora_dir or self._lora_dir)
        everyone = [*called.values(), *(adapter for adapter, _ in adapters)]
        for adapter in everyone:
            self._advise(adapter, request)
        words = Words(
            self._tokenizer,
            TEXT_ENCODER,
            int(config["vocab_size"]),
            int(config["hidden_size"]),
            {**{word.name: word for adapter in everyone for word in adapter.embeddings}, **self._installed()},
        )
        story = scenes(request.prompts, request.negatives, request.plan.steps, called, adapters)
        return replace(request, story=story, words=words)

    def _advise(self, adapter: Adapter, request: Request) -> None:
        """Propose what a few-step adapter needs, once for each; nothing is changed."""
        wants = advice(adapter.name, adapter.metadata)
        if wants is None or adapter.name in self._advised:
            return
        if wants.sampler != request.plan.name or wants.guidance != request.guidance:
            log.warning("%s", wants.sentence)
            self._advised.add(adapter.name)

    def _installed(self) -> Mapping[str, Embedding]:
        """Embeddings of the folder; one of the same name that comes with an adapter gives way."""
        if self._embeddings is None:
            return {}
        words = self._embeddings.all()
        for path, reason in self._embeddings.unreadable:
            if path not in self._told:
                log.warning("an embedding is left out: %s", reason)
                self._told.add(path)
        return words

    def _called(self, names: Sequence[str], folder: Path | None) -> dict[str, Adapter]:
        if not names:
            return {}
        if folder is None:
            raise RequestError(f"the prompt names the adapter {names[0]!r}, but no lora_dir says where adapters lie")
        library = self._libraries.setdefault(folder, Library(folder))
        return {name: self._load(library.find(name)) for name in names}
