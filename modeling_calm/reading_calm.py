"""Reading: the wordpieces of a transcript, found in the acoustic tokens of its clip in their order.

Dimensions: B clips, T acoustic tokens, L lexical tokens, K wordpieces to tell apart, E width of the embeddings.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import ctc_loss, normalize

from .loss_calm import in_tiles, inverse_temperature, scaled_cosines


class CalmTranscriptReader(nn.Module):
    """What each acoustic token says: one of the wordpieces, or none."""

    def __init__(self, width: int):
        super().__init__()
        self.blank_embedding = nn.Parameter(torch.empty(width))  # stands for none
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
        """Log-softmax over the scaled cosines of acoustic tokens with no wordpiece and with each wordpiece.

        Args:
            tokens: (B, T, E).
            tokens_mask: (B, T) bool.
            word_ids: (K,) long, the wordpieces told apart.
            directions: gives (...) wordpieces their (..., E) L2-normalised centred embeddings, targets that get no
                gradient.
            ids: (B, L) long, the wordpieces to tell of for each clip, each one of `word_ids`; -1 stands for none. All
                of them, L = K, by default.
            tile_size: wordpieces whose directions and cosines are held at once; the rest is computed again in the
                backward pass.

        Returns:
            (B, T, 1 + L) float32, no wordpiece before the others, and the real tokens of a clip, in order, before the
            others.
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
    """(N, L) wordpieces, -1 for what is to be left out, to the (N, 1 + L) `places` of none and of each of them.

    Args:
        ids: every wordpiece in it is one of `word_ids`.
        word_ids: (K,) long, ascending: the wordpieces told apart.
    """
    places = (torch.searchsorted(word_ids, ids) + 1).masked_fill(ids < 0, 0)
    return nn.functional.pad(places, (1, 0))


def transcript_losses(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How hard each transcript is to read from the tokens of its clip, in its order.

    Connectionist temporal classification (Graves et al. 2006): minus the log of the sum over all ways to spread a
    transcript over its clip's tokens, each way the product of what its tokens say; divided by the number of pieces.

    Args:
        log_probabilities: (B, T, 1 + L), of no wordpiece and of each one of the clip's own transcript, see
            [`CalmTranscriptReader`].
        num_tokens: (B,) long, real ones.
        ids: (B, L) wordpieces of the transcripts; -1 for what is to be left out.

    Returns:
        (B,) losses, and (B,) bool, whether the clip has the tokens that its transcript needs, one a piece and one
        between two equal ones, and a transcript at all; the loss is 0 elsewhere.
    """
    spoken = ids >= 0
    num_pieces = spoken.sum(-1)
    alike = ids.unsqueeze(-1) == nn.functional.pad(ids, (0, 1), value=-1).unsqueeze(-2)  # (B, L, L + 1)
    pieces = (alike.int().argmax(-1) + 1)[spoken]  # of all clips, one after the other; equal ones by their first place
    owners = torch.arange(len(ids), device=ids.device).repeat_interleave(num_pieces)
    twice = (pieces[1:] == pieces[:-1]) & (owners[1:] == owners[:-1])
    needed = num_pieces + torch.zeros_like(num_pieces).index_add(0, owners[1:], twice.long())
    fits = (num_pieces > 0) & (needed <= num_tokens)
    # On CUDA its gradient is not deterministic, and refused where that is asked for.
    device = "cpu" if torch.are_deterministic_algorithms_enabled() else ids.device
    given = (given.to(device) for given in (log_probabilities.transpose(0, 1), pieces, num_tokens, num_pieces))
    losses = ctc_loss(*given, reduction="none", zero_infinity=True).to(ids.device)
    # torch's gradient is that of a whole softmax's logits: its slopes hold each probability once, which cancels there
    # and not in a part of the softmax. A term of value zero takes it out.
    real = torch.arange(log_probabilities.shape[1], device=ids.device) < num_tokens.unsqueeze(-1)  # (B, T)
    told = (log_probabilities.exp() * real.unsqueeze(-1)).sum((1, 2))
    losses = losses - (told - told.detach())
    return torch.where(fits, losses / num_pieces.clamp(min=1), 0.0), fits


def transcript_scores(
    log_probabilities: torch.Tensor, num_tokens: torch.Tensor, ids: torch.Tensor, word_ids: torch.Tensor
) -> torch.Tensor:
    """(B, N) mean log-probability of a wordpiece of each of N texts in each clip; minus infinity where it has no room.

    Args:
        log_probabilities: (B, T, 1 + K), of none and of all.
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
