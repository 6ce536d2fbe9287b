"""Outputs of CALM's models.

Dimensions: B clips, W real windows in a batch, S patches in an acoustic token, T acoustic tokens, L lexical tokens,
H width of the language model, E width of its word embeddings, k nearest wordpieces of an acoustic token.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class CalmAudioModelOutput(BaseModelOutputWithPooling):
    """Output of [`CalmAudioModel`].

    Args:
        last_hidden_state: (B, T, hidden), zero where masked.
        pooler_output: (B, 4 hidden), mean and standard deviation over real tokens, of the windows before the context
            layers and of `last_hidden_state`; zero for a row without audio.
        acoustic_tokens_mask: (B, T) bool, true for a token whose window holds real audio.
        hidden_states: `num_hidden_layers + 1` tensors (W, S, hidden), with `output_hidden_states=True`; windows in
            row-major order of `acoustic_tokens_mask`.
        attentions: one (W, heads, S, S) per layer within the windows, with `output_attentions=True`.
        context_attentions: one (B, heads, T, T) per context layer, with `output_context_attentions=True`.
    """

    acoustic_tokens_mask: torch.BoolTensor | None = None
    context_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CalmModelOutput(BaseModelOutputWithPooling):
    """Output of [`CalmModel`].

    Args:
        last_hidden_state: (B, L + T, H), lexical then acoustic positions in input order, zero where masked.
        pooler_output: (B, H), the mean over real positions.
        acoustic_tokens: (B, T, E), relative to the mean word embedding, zero where masked.
        acoustic_tokens_mask: (B, T) bool.
        audio_pooler_output: (B, 4 hidden), SpecTran's `pooler_output`; zero for a row without audio.
        audio_embeds: (B, E), L2-normalised mean of the acoustic tokens; zero for a row without audio.
        text_embeds: (B, E), L2-normalised mean of the centred word embeddings; zero for a row without text.
        hidden_states, attentions: the language model's own, over the compacted sequence: real lexical, real
            acoustic, padding.
    """

    acoustic_tokens: torch.FloatTensor | None = None
    acoustic_tokens_mask: torch.BoolTensor | None = None
    audio_pooler_output: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


@dataclass
class CalmForPreTrainingOutput(ModelOutput):
    """Output of [`CalmForPreTraining`]; a term of weight 0, or whose masks were not given, is `None`.

    Args:
        loss: scalar, the weighted sum of the terms.
        audio_text_loss, audio_audio_loss, transcript_loss, masked_language_loss, masked_acoustic_loss: scalars,
            unweighted.
        logits_per_audio: (B, N), scaled cosines of each clip with each transcript of this rank, or with each of N
            candidates; `None` in training with `contrastive_chunk_size`.
        logits_per_text: its transpose.
        audio_embeds, text_embeds: (B, E), L2-normalised.
    """

    loss: torch.FloatTensor | None = None
    audio_text_loss: torch.FloatTensor | None = None
    audio_audio_loss: torch.FloatTensor | None = None
    transcript_loss: torch.FloatTensor | None = None
    masked_language_loss: torch.FloatTensor | None = None
    masked_acoustic_loss: torch.FloatTensor | None = None
    logits_per_audio: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


@dataclass
class NearestTokens(ModelOutput):
    """The wordpieces nearest to each acoustic token.

    Args:
        token_ids: (B, T, k) long, nearest first.
        similarities: (B, T, k), cosines in the centred embedding space.
        time_spans: (T, 2), start and end of each token's window in seconds.
        acoustic_tokens_mask: (B, T) bool.
    """

    token_ids: torch.LongTensor | None = None
    similarities: torch.FloatTensor | None = None
    time_spans: torch.FloatTensor | None = None
    acoustic_tokens_mask: torch.BoolTensor | None = None
