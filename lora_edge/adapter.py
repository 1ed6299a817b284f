"""An adapter that has been read and fitted to the slots of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_edge.embedding import Embedding
from lora_edge.forms import ComponentForms


@dataclass(frozen=True)
class Report:
    """What became of a file's tensors.

    Attributes:
        applied: names of the tensors that take effect.
        unused: name -> the reason why a tensor has no effect (empty when loaded strictly).
        warnings: sentences worth showing to a person, such as an alpha of 0.
    """

    applied: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.applied)} tensors applied, {len(self.unused)} unused"


@dataclass(frozen=True)
class Adapter:
    """One adapter, ready for one bundle.

    Attributes:
        name: what a prompt calls it.
        kinds: the kinds found in the file, such as ("lora",).
        components: component -> what it changes there.
        metadata: the file's own header strings.
        report: what was applied and what not.
        path: where it was read from.
        embeddings: words that come with the file and hold while it acts.
    """

    name: str
    kinds: tuple[str, ...]
    components: Mapping[str, ComponentForms]
    metadata: Mapping[str, str]
    report: Report
    path: Path | None = None
    embeddings: tuple[Embedding, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the adapter takes in memory."""
        forms = sum(part.nbytes for part in self.components.values())
        return forms + sum(word.nbytes for word in self.embeddings)
