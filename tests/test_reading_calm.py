"""`modeling_calm.reading_calm`: every way to read a transcript counts, once."""

from collections.abc import Callable
from itertools import groupby, product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_calm.reading_calm import CalmTranscriptReader, places_of, transcript_losses, transcript_scores


def unit(*shape) -> torch.Tensor:
    return normalize(torch.randn(*shape), dim=-1)


def directions_of(words: torch.Tensor, word_ids: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Row k of `words` for wordpiece k of `word_ids`, and any row for what is none of them."""
    return lambda ids: words[(ids.unsqueeze(-1) == word_ids).int().argmax(-1)]


@pytest.fixture
def reader() -> CalmTranscriptReader:
    """At an inverse temperature of 5."""
    reader = CalmTranscriptReader(8)
    torch.nn.init.constant_(reader.logit_scale, np.log(5))
    torch.nn.init.normal_(reader.blank_embedding)
    return reader


def test_transcript_loss_sums_over_all_ways_to_spread_a_transcript(reader):
    """By enumeration: tokens that pick a piece several times in a row say it once, those that pick none are silent.

    So are the gradients, for the dictionary holds more than what a clip says.
    """
    mask = torch.tensor([[True, False, True, True, True], [True, True, True, False, False]])
    tokens, words, word_ids = unit(2, 5, 8).requires_grad_(), unit(3, 8), torch.tensor([7, 9, 12])
    keys, expected = normalize(torch.cat((reader.blank_embedding[None], words)), dim=-1), 0.0
    ids = torch.tensor([[9, -1, 7, 9], [-1, 9, -1, -1]])
    for clip, real, row in zip(tokens, mask, ids, strict=True):
        spoken = [word_ids.tolist().index(piece) + 1 for piece in row.tolist() if piece >= 0]
        probabilities = (reader.logit_scale.exp() * normalize(clip[real], dim=-1) @ keys.T).softmax(-1)
        ways = (way for way in product(range(4), repeat=len(probabilities)))
        right = [way for way in ways if [piece for piece, _ in groupby(way) if piece] == spoken]
        total = sum(probabilities[torch.arange(len(way)), list(way)].prod() for way in right)
        expected = expected - total.log() / len(spoken)
    said = reader(tokens, mask, word_ids, directions_of(words, word_ids), ids)
    losses, fits = transcript_losses(said, mask.sum(-1), ids)
    assert fits.all()
    torch.testing.assert_close(losses.sum(), expected)
    weights = (tokens, reader.blank_embedding, reader.logit_scale)
    for found, slope in zip(*(torch.autograd.grad(loss, weights) for loss in (losses.sum(), expected)), strict=True):
        torch.testing.assert_close(found, slope, atol=1e-5, rtol=1e-4)


def test_clips_too_short_for_their_transcript_take_no_part(reader):
    """Fast speech may have more pieces than tokens; an infinite loss would end the training."""
    tokens = unit(5, 3, 8).requires_grad_()
    lengths = torch.tensor([3, 3, 2, 3, 0])
    ids = torch.tensor([[1, 2, 3, -1], [1, 2, 3, 4], [1, 1, -1, -1], [-1, -1, -1, -1], [1, -1, -1, -1]])
    mask = torch.arange(3) < lengths[:, None]
    word_ids = torch.tensor([1, 2, 3, 4])
    said = reader(tokens, mask, word_ids, directions_of(unit(4, 8), word_ids), ids)
    losses, fits = transcript_losses(said, lengths, ids)
    losses.sum().backward()
    assert fits.tolist() == [True, False, False, False, False]
    assert losses[0] > 0 and not losses[1:].any()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.flatten(1).any(-1).tolist() == [True, False, False, False, False]


def test_tiles_change_neither_log_probabilities_nor_gradients(reader):
    """Tokens times the wordpieces of a large batch would be its largest tensor."""
    mask = torch.arange(6) < torch.tensor([[6], [4], [5]])
    ids, word_ids = torch.tensor([[6, 4], [5, 5], [7, 4]]), torch.tensor([4, 5, 6, 7, 8])
    tokens, directions = unit(3, 6, 8).requires_grad_(), directions_of(unit(5, 8), word_ids)
    found = []
    for tile_size in (None, 2):
        said = reader(tokens, mask, word_ids, directions, ids, tile_size)
        weights = torch.linspace(-1, 1, said.numel()).view_as(said)
        of = (tokens, reader.blank_embedding, reader.logit_scale)
        found.append((said, *torch.autograd.grad((said * weights).sum(), of)))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole)
    every = reader(tokens, mask, word_ids, directions)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(3, 6))
    torch.testing.assert_close(found[0][0], every.gather(2, places_of(ids, word_ids)[:, None].expand(-1, 6, -1)))


def test_clips_of_which_none_says_a_word_are_silent(reader):
    """A batch of noises: no wordpiece to tell apart, and no gradient that is not finite."""
    tokens, nobody = unit(2, 3, 8).requires_grad_(), torch.tensor([], dtype=torch.long)
    ids, mask = torch.full((2, 2), -1), torch.ones(2, 3, dtype=torch.bool)
    said = reader(tokens, mask, nobody, lambda ids: torch.ones(*ids.shape, 8) / 8**0.5, ids)
    torch.testing.assert_close(said[..., 0], torch.zeros(2, 3))
    losses, fits = transcript_losses(said, mask.sum(-1), ids)
    losses.sum().backward()
    assert not losses.any() and not fits.any() and not tokens.grad.any()


def test_padding_tells_of_no_wordpiece(reader):
    """As a wordpiece outside of the partition its probability would exceed any bound, at the steepest scale."""
    torch.nn.init.constant_(reader.logit_scale, np.log(100))
    words = unit(3, 8)
    tokens = words[:1].expand(2, 3, 8).clone().requires_grad_()  # each on the first row, which no transcript holds
    ids, word_ids, mask = torch.tensor([[1, 2], [2, -1]]), torch.tensor([1, 2]), torch.ones(2, 3, dtype=torch.bool)
    said = reader(tokens, mask, word_ids, lambda ids: words[ids], ids)
    torch.testing.assert_close(said[1, :, 2], said[1, :, 0])
    losses, _ = transcript_losses(said, mask.sum(-1), ids)
    losses.sum().backward()
    assert losses.isfinite().all() and tokens.grad.isfinite().all()


def test_a_score_is_that_of_the_text_alone(reader):
    """Minus the loss of each pair of a clip and a text, a repeated wordpiece told apart from another one."""
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    ids, word_ids = torch.tensor([[5, 5, -1], [5, 8, 5], [8, -1, -1]]), torch.tensor([5, 8])
    said = reader(unit(2, 6, 8), mask, word_ids, directions_of(unit(2, 8), word_ids))
    scores = transcript_scores(said, mask.sum(-1), ids, word_ids)
    assert scores.shape == (2, 3) and scores.isfinite().all()
    for text, places in zip(ids, places_of(ids, word_ids), strict=True):
        losses, _ = transcript_losses(said[..., places], mask.sum(-1), text.expand(2, -1))
        torch.testing.assert_close(scores[:, ids.eq(text).all(-1)].squeeze(-1), -losses)
