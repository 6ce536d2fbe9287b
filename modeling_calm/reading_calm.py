"""Transcript reading: aligning a transcript's wordpieces, in order, with the acoustic tokens of its clip.

Dimensions: B clips, T acoustic tokens, L lexical tokens, K wordpieces in the vocabulary, E width of the embeddings.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import ctc_loss, normalize

from .loss_calm import in_tiles, inverse_temperature, scaled_cosines


class CalmTranscriptReader(nn.Module):
    """Predicts what each acoustic token says: a wordpiece, or none (the blank)."""

    def __init__(self, width: int):
        super().__init__()
        self.blank_embedding = nn.Parameter(torch.empty(width))  # for no wordpiece
        self.logit_scale = nn.Parameter(torch.empty(1))

    def forward(
        self,
        tokens: torch.Tensor,
        tokens_mask: torch.Tensor,
        word_ids: torch.Tensor,
        directions: Callable[[torch.Tensor], torch.Tensor],
        ids: torch.Tensor | None = None,
        tile_size: int | None = None,
    ) -> torch.Tensor:
        """Log-softmax over the scaled cosines of acoustic tokens with the blank and with each wordpiece.

        Args:
            tokens: (B, T, E).
            tokens_mask: (B, T) bool.
            word_ids: (K,) long, the vocabulary of the softmax.
            directions: maps wordpieces (...) to their (..., E) L2-normalised centred embeddings, targets without
                gradient.
            ids: (B, L) long, the wordpieces to return for each clip, each one of `word_ids`; -1 for the blank. All of
                `word_ids`, L = K, by default.
            tile_size: wordpieces whose directions and cosines are in memory at once; they are recomputed in the
                backward pass.

        Returns:
            (B, T, 1 + L) float32, with the blank first, and each clip's real tokens, in order, before its padding.
        """
        none = normalize(self.blank_embedding.float(), dim=0).unsqueeze(0)  # (1, E)
        first = (~tokens_mask).long().argsort(dim=1, stable=True).unsqueeze(-1)
        heard = normalize(tokens.float().gather(1, first.expand_as(tokens)), dim=-1)  # (B, T, E)
        scale = inverse_temperature(self.logit_scale)
        silent = scaled_cosines(heard, none, scale)  # (B, T, 1)
        if ids is None:
            return torch.cat((silent, scaled_cosines(heard, directions(word_ids), scale)), dim=-1).log_softmax(-1)

        def partition(word_ids: torch.Tensor, heard: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return scaled_cosines(heard, directions(word_ids), scale).logsumexp(-1, keepdim=True)

        spoken = scaled_cosines(heard, directions(ids.clamp(min=0)), scale)  # (B, T, L)
        spoken = torch.where(ids.unsqueeze(1) >= 0, spoken, silent)
        partitions = torch.cat((silent, *in_tiles(partition, tile_size, (word_ids,), (heard, scale))), dim=-1)
        return torch.cat((silent, spoken), dim=-1) - partitions.logsumexp(-1, keepdim=True)


def places_of(ids: torch.Tensor, word_ids: torch.Tensor) -> torch.Tensor:
    """Indices (N, 1 + L) of the blank and of each of (N, L) wordpieces, -1 to ignore, into the log-probabilities.

    Args:
        ids: wordpieces, each one of `word_ids`.
        word_ids: (K,) long, ascending: the vocabulary.
    """
    places = (torch.searchsorted(word_ids, ids) + 1).masked_fill(ids < 0, 0)
    return nn.functional.pad(places, (1, 0))


def transcript_losses(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CTC loss per wordpiece of each transcript, given the acoustic tokens of its clip.

    Connectionist temporal classification (Graves et al. 2006): minus the log of the sum over all alignments of a
    transcript with its clip's tokens, each the product of its tokens' probabilities; divided by the number of
    wordpieces.

    Args:
        log_probabilities: (B, T, 1 + L), of the blank and of each wordpiece of the clip's own transcript, see
            [`CalmTranscriptReader`].
        num_tokens: (B,) long, real acoustic tokens.
        ids: (B, L) wordpieces of the transcripts; -1 to ignore.

    Returns:
        (B,) losses, and (B,) bool, whether there is a transcript and its clip has the tokens it needs, one per
        wordpiece and one between two equal neighbours; the loss is 0 elsewhere.
    """
    spoken = ids >= 0
    num_pieces = spoken.sum(-1)
    alike = ids.unsqueeze(-1) == nn.functional.pad(ids, (0, 1), value=-1).unsqueeze(-2)  # (B, L, L + 1)
    pieces = (alike.int().argmax(-1) + 1)[spoken]  # of all clips, concatenated; equal ones by their first position
    owners = torch.arange(len(ids), device=ids.device).repeat_interleave(num_pieces)
    twice = (pieces[1:] == pieces[:-1]) & (owners[1:] == owners[:-1])
    needed = num_pieces + torch.zeros_like(num_pieces).index_add(0, owners[1:], twice.long())
    fits = (num_pieces > 0) & (needed <= num_tokens)
    # On CUDA its gradient is not deterministic, and raises where determinism is required.
    device = "cpu" if torch.are_deterministic_algorithms_enabled() else ids.device
    given = (given.to(device) for given in (log_probabilities.transpose(0, 1), pieces, num_tokens, num_pieces))
    losses = ctc_loss(*given, reduction="none", zero_infinity=True).to(ids.device)
    # torch's gradient assumes a complete softmax: it includes each probability once, which cancels there but not for a
    # part of the softmax. A term of value zero removes it.
    real = torch.arange(log_probabilities.shape[1], device=ids.device) < num_tokens.unsqueeze(-1)  # (B, T)
    told = (log_probabilities.exp() * real.unsqueeze(-1)).sum((1, 2))
    losses = losses - (told - told.detach())
    return torch.where(fits, losses / num_pieces.clamp(min=1), 0.0), fits


def transcript_scores(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor, word_ids: torch.Tensor
) -> torch.Tensor:
    """(B, N) mean log-probability per wordpiece of N texts in B clips; minus infinity where a text does not fit.

    Args:
        log_probabilities: (B, T, 1 + K), of the blank and of all wordpieces.
        num_tokens: as in [`transcript_losses`].
        ids: (N, L), likewise.
        word_ids: see [`places_of`].
    """
    places, scores = places_of(ids, word_ids), []
    for clip, length in zip(log_probabilities, num_tokens, strict=True):
        of_each_text = clip[:, places].transpose(0, 1)  # (N, T, 1 + L)
        losses, fits = transcript_losses(of_each_text, length.expand(len(ids)), ids)
        scores.append((-losses).masked_fill(~fits, -torch.inf))
    return torch.stack(scores)
