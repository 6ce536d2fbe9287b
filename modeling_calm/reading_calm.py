"""Reading: the wordpieces of a transcript, found in the acoustic tokens of its clip in their order.

Dimensions: B clips, T acoustic tokens, L lexical tokens, K wordpieces to tell apart, E width of the embeddings.
"""

import torch
from torch import nn
from torch.nn.functional import ctc_loss, normalize

from .configuration_calm import CalmConfig
from .loss_calm import inverse_temperature, scaled_cosines


class CalmTranscriptReader(nn.Module):
    """What each acoustic token says: one of the wordpieces, or none.

    Neither weight asks for a gradient where `transcript_loss_weight` is 0: idle ones would stop distributed training.
    """

    def __init__(self, config: CalmConfig, width: int):
        super().__init__()
        used = bool(config.transcript_loss_weight)
        self.blank_embedding = nn.Parameter(torch.empty(width), requires_grad=used)  # stands for none
        self.logit_scale = nn.Parameter(torch.empty(1), requires_grad=used)

    def keys(self, words: torch.Tensor) -> torch.Tensor:
        """(K, E) centred word embeddings to (1 + K, E) L2-normalised vectors, the first for no wordpiece."""
        words = words.detach()  # a target
        return normalize(torch.cat((self.blank_embedding.unsqueeze(0).to(words.dtype), words)).float(), dim=-1)

    def forward(self, tokens: torch.Tensor, tokens_mask: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Log-softmax over the scaled cosines of acoustic tokens with the keys.

        Args:
            tokens: (B, T, E).
            tokens_mask: (B, T) bool.
            keys: (1 + K, E), see `keys`.

        Returns:
            (B, T, 1 + K) float32, the real tokens of a clip, in order, before the others.
        """
        directions = normalize(tokens.float(), dim=-1).flatten(0, 1)
        logits = scaled_cosines(directions, keys, inverse_temperature(self.logit_scale))
        first = (~tokens_mask).long().argsort(dim=1, stable=True).unsqueeze(-1)
        log_probabilities = logits.unflatten(0, tokens.shape[:2]).log_softmax(-1)
        return log_probabilities.gather(1, first.expand_as(log_probabilities))


def transcript_losses(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor, key_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How hard each transcript is to read from the tokens of its clip, in its order.

    Connectionist temporal classification (Graves et al. 2006): minus the log of the sum over all ways to spread a
    transcript over its clip's tokens, each way the product of what its tokens say; divided by the number of pieces.

    Args:
        log_probabilities: (B, T, 1 + K), see [`CalmTranscriptReader`].
        num_tokens: (B,) long, real ones.
        ids: (B, L) wordpieces of the transcripts; -1 for what is to be left out.
        key_ids: (K,) long, ascending: the wordpieces told apart, every one of `ids` among them.

    Returns:
        (B,) losses, and (B,) bool, whether the clip has the tokens that its transcript needs, one a piece and one
        between two equal ones, and a transcript at all; the loss is 0 elsewhere.
    """
    num_pieces = (ids >= 0).sum(-1)
    pieces = torch.searchsorted(key_ids, ids[ids >= 0]) + 1  # of all clips, one after the other
    owners = torch.arange(len(ids), device=ids.device).repeat_interleave(num_pieces)
    twice = (pieces[1:] == pieces[:-1]) & (owners[1:] == owners[:-1])
    needed = num_pieces + torch.zeros_like(num_pieces).index_add(0, owners[1:], twice.long())
    fits = (num_pieces > 0) & (needed <= num_tokens)
    losses = ctc_loss(
        log_probabilities.transpose(0, 1), pieces, num_tokens, num_pieces, reduction="none", zero_infinity=True
    )
    return torch.where(fits, losses / num_pieces.clamp(min=1), 0.0), fits


def transcript_scores(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor, key_ids: torch.Tensor
) -> torch.Tensor:
    """(B, N) mean log-probability of a wordpiece of each of N texts in each clip; minus infinity where it has no room.

    Args:
        log_probabilities, num_tokens, key_ids: as in [`transcript_losses`].
        ids: (N, L), likewise.
    """
    scores = []
    for clip, length in zip(log_probabilities, num_tokens, strict=True):
        losses, fits = transcript_losses(clip.expand(len(ids), -1, -1), length.expand(len(ids)), ids, key_ids)
        scores.append((-losses).masked_fill(~fits, -torch.inf))
    return torch.stack(scores)
