"""SpecTran's transformer layer, used within windows and across them.

Dimensions: B clips, S patches in an acoustic token, T acoustic tokens, W real windows, N real tokens in a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_calm import CalmAudioConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain torch; query, key and value are (batch, heads, length, head width)."""
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the channel pairs (i, i + half) of (..., T, width) by their position's angles: Su et al. 2021, eq. 34.

    The angles are float32; `states` keep their dtype, which under autocast must match that of the values.
    """
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(states.dtype)


class TokenPlaces(NamedTuple):
    """Positions of the tokens of all clips, packed as (N, hidden), in the padded tensor (B, T, hidden).

    Attributes:
        index: (N,) long, the tokens' positions in the flattened (B * T) rows; computed only once, as finding them
            synchronises the GPU and breaks a compiled graph.
        shape: (B, T).
        block: tokens per block; each block attends to itself and its two neighbours. None for no blocks.
    """

    index: torch.Tensor
    shape: torch.Size
    block: int | None = None

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, hidden) to (N, hidden)."""
        return states.flatten(0, 1).index_select(0, self.index)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """(N, hidden) to (B, T, hidden), zero elsewhere."""
        rectangle = states.new_zeros(*self.shape, states.shape[-1])
        return rectangle.flatten(0, 1).index_copy(0, self.index, states).view_as(rectangle)


def cut(states: torch.Tensor, block: int, beside: int = 0) -> torch.Tensor:
    """(B, T, ...) to K blocks per row, `beside` more positions on either side: (B, K, block + 2 * beside, ...)."""
    length = states.shape[1]
    blocks = -(-length // block)
    around = (0, 0) * (states.dim() - 2) + (beside, beside + blocks * block - length)
    return nn.functional.pad(states, around).unfold(1, block + 2 * beside, block).movedim(-1, 2)


def block_mask(mask: torch.Tensor, block: int) -> torch.Tensor:
    """(B, T) bool mask of real positions to the (B * K, 1, block, 3 block) mask of what each position attends to.

    Real positions at most `block` away, and itself, real or not: a softmax over nothing would be NaN.
    """
    offsets = torch.arange(3 * block, device=mask.device) - block - torch.arange(block, device=mask.device)[:, None]
    seen = cut(mask, block, beside=block).unsqueeze(-2) & (offsets.abs() <= block) | (offsets == 0)
    return seen.flatten(0, 1).unsqueeze(1)


class CalmAudioAttention(nn.Module):
    """Self-attention among the sub-tokens of each window, (W, S, hidden), or among the tokens of each clip.

    The tokens of all clips come packed, (N, hidden), with their positions in the clips: only attention itself needs
    the padded layout (B, T), and no projection is wasted on padding.
    """

    def __init__(self, config: CalmAudioConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        places: TokenPlaces | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        states = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        if places is not None:
            states = (places.unpack(values) for values in states)
        query, key, value = (
            values.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for values in states
        )
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        block = None if places is None else places.block
        if block is not None:
            query = cut(query.transpose(1, 2), block).flatten(0, 1).transpose(1, 2)  # (B * K, heads, block, width)
            key, value = (
                cut(values.transpose(1, 2), block, beside=block).flatten(0, 1).transpose(1, 2)
                for values in (key, value)
            )  # (B * K, heads, 3 block, width)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if places is not None:
            kwargs["sliding_window"] = self.config.sliding_window + 1  # flash has no mask; counts the token itself
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output = output.flatten(-2)
        if block is not None:
            output = output.unflatten(0, (places.shape[0], -1)).flatten(1, 2)[:, : places.shape[1]]
        return self.o_proj(output if places is None else places.pack(output)), weights


class CalmAudioMLP(nn.Module):
    """Feed-forward network of a layer."""

    def __init__(self, config: CalmAudioConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class CalmAudioLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: CalmAudioConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CalmAudioAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CalmAudioMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        places: TokenPlaces | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.attention(
            self.layernorm_before(hidden_states), attention_mask, position_embeddings, places, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))
