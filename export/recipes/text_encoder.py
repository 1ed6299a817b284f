"""CLIP text encoders, as transformers 4 and 5 write them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_edge.export.recipes.base import Port, Recipe, seeded


class _Traced(nn.Module):
    """Outputs: last_hidden_state, then pooler_output or text_embeds, then every hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        pooled = out.text_embeds if hasattr(self.model, "text_projection") else out.pooler_output
        return (out.last_hidden_state, pooled, *out.hidden_states)


def _load(class_name: str, folder: str, dtype: torch.dtype) -> nn.Module:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model: nn.Module = getattr(transformers, class_name).from_pretrained(folder, dtype=dtype)
    return model.eval()


def _outputs(module: nn.Module) -> tuple[Port, ...]:
    layers: int = module.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    sequence = {0: "rows", 1: "tokens"}
    pooled = "text_embeds" if hasattr(module, "text_projection") else "pooler_output"
    hidden = tuple(Port(f"hidden_states.{index}", sequence) for index in range(layers + 1))
    return (Port("last_hidden_state", sequence), Port(pooled, {0: "rows"}), *hidden)


def _example(config: Mapping[str, Any], rows: int, size: int) -> tuple[Tensor, ...]:
    """Prompts: start of text, words, and ends of text to the full length; CLIP's two marks are its last ids.

    A trained encoder is ill-conditioned on what no tokenizer makes, and float32 then decides little.
    """
    length, words = config["max_position_embeddings"], config["vocab_size"] - 2
    ids = torch.full((rows, length), words + 1)
    ids[:, 0] = words
    for row in range(rows):
        many = max(1, (row + 1) * length // (rows + 2))
        ids[row, 1 : 1 + many] = torch.randint(0, words, (many,), generator=seeded(row))
    return (ids,)


def _canonical(name: str) -> str:
    """transformers 5 dropped the level `text_model.` that every adapter file still names."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _recipe(component: str) -> Recipe:
    return Recipe(
        component=component,
        folder=component,
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        load=_load,
        wrap=_Traced,
        inputs=(Port("input_ids", {0: "rows", 1: "tokens"}),),
        outputs=_outputs,
        example=_example,
        reference=lambda config: 0,
        canonical=_canonical,
    )


TEXT_ENCODER = _recipe("text_encoder")
TEXT_ENCODER_2 = _recipe("text_encoder_2")
