"""The Neural Engine's layout of a UNet: sequences are [rows, channels, 1, tokens] and every Linear a 1x1 convolution.

Attention runs head by head, and over pieces of long sequences, as contractions that need no transposition: the layout
of "Deploying Transformers on the Apple Neural Engine" (Apple, 2022). Weights are shared with the module given, and
every layer keeps its path, so that slots keep their names.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_edge.errors import ExportError
from lora_edge.export.coreml.norms import ChannelNorm, half_norms, shared_copy

PIECE = 1024  # queries that one contraction takes; the scores of a head of 4096 tokens would not stay on the chip


def split_einsum(unet: nn.Module) -> nn.Module:
    """The same UNet in the other layout; it takes the text as [rows, width, 1, tokens].

    Raises:
        ExportError: its transformers are not those of the SD1 architecture.
    """
    made = half_norms(shared_copy(unet))
    for path, module in list(made.named_modules()):
        replacement = _REPLACED.get(type(module).__name__)
        if replacement is not None:
            made.set_submodule(path, replacement(module))
    for path, module in list(made.named_modules()):  # what is left: the embedding of the time
        if isinstance(module, nn.Linear):
            made.set_submodule(path, Pointwise(module))
    return made


class Pointwise(nn.Conv2d):
    """A Linear as a convolution; takes [rows, in, 1, tokens], or [rows, in] where there are no tokens."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
        self.weight = nn.Parameter(linear.weight.data[:, :, None, None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dim() == 4 else super().forward(x[:, :, None, None]).flatten(1)


class SplitAttention(nn.Module):
    """Attention, head by head."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.scale: float = attention.scale
        self.to_q, self.to_k, self.to_v = (
            Pointwise(attention.get_submodule(name)) for name in ("to_q", "to_k", "to_v")
        )
        self.to_out = nn.ModuleList([Pointwise(attention.to_out[0])])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [rows, channels, 1, queries], context [rows, width, 1, keys] -> [rows, channels, 1, queries]."""
        query, key, value = self.to_q(x), self.to_k(context).transpose(1, 3), self.to_v(context)
        size = query.shape[1] // self.heads
        heads = zip(torch.split(query, size, 1), torch.split(key, size, 3), torch.split(value, size, 1), strict=True)
        out: Tensor = self.to_out[0](torch.cat([self._head(q, k, v) for q, k, v in heads], dim=1))
        return out

    def _head(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pieces = []
        for piece in torch.split(query, PIECE, 3) if query.shape[3] > PIECE else (query,):
            scores = torch.einsum("bchq,bkhc->bkhq", piece, key) * self.scale
            pieces.append(torch.einsum("bkhq,bchk->bchq", scores.softmax(dim=1), value))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)


class Gated(nn.Module):
    """The first layer of a feed-forward: half of its channels gate the others."""

    def __init__(self, gated: Any) -> None:
        super().__init__()
        self.proj = Pointwise(gated.proj)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = torch.chunk(self.proj(x), 2, dim=1)
        return values * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers with a gate between; the one in the middle only keeps the paths as they were."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(Gated(feed_forward.net[0]), nn.Identity(), Pointwise(feed_forward.net[2]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        known = _children(block) == _BLOCK and _children(block.attn1) == _children(block.attn2) == _ATTENTION
        if not known or block.norm_type != "layer_norm" or type(block.ff.net[0]).__name__ != "GEGLU":
            raise ExportError("the UNet's transformers are not those of SD1; export with attention='original'")
        self.norm1, self.norm2, self.norm3 = (ChannelNorm(norm) for norm in (block.norm1, block.norm2, block.norm3))
        self.attn1, self.attn2 = SplitAttention(block.attn1), SplitAttention(block.attn2)
        self.text_only: bool = block.only_cross_attention
        self.ff = FeedForward(block.ff)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [rows, channels, 1, positions], text [rows, width, 1, tokens] -> as x."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, text if self.text_only else normed)
        x = x + self.attn2(self.norm2(x), text)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


_BLOCK = {"norm1", "attn1", "norm2", "attn2", "norm3", "ff"}
_ATTENTION = {"to_q", "to_k", "to_v", "to_out"}


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


class Transformer(nn.Module):
    """diffusers' Transformer2DModel over images; called as it is."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        if not transformer.is_input_continuous:
            raise ExportError("the UNet's transformers do not take images; export with attention='original'")
        self.norm = transformer.norm
        self.proj_in, self.proj_out = (
            Pointwise(layer) if isinstance(layer, nn.Linear) else layer
            for layer in (transformer.proj_in, transformer.proj_out)
        )
        self.transformer_blocks = nn.ModuleList(Block(block) for block in transformer.transformer_blocks)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        rows, _channels, height, width = hidden_states.shape
        x = self.proj_in(self.norm(hidden_states)).flatten(2)[:, :, None]
        for block in self.transformer_blocks:
            x = block(x, encoder_hidden_states)
        return (self.proj_out(x.reshape(rows, -1, height, width)) + hidden_states,)


_REPLACED: Mapping[str, Any] = {"Transformer2DModel": Transformer}
