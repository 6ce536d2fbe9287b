"""`modeling_calm.reading_calm`: every way to read a transcript counts, once."""

from itertools import groupby, product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_calm import CalmConfig
from modeling_calm.reading_calm import CalmTranscriptReader, transcript_losses


def unit(*shape) -> torch.Tensor:
    return normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def reader() -> CalmTranscriptReader:
    """At an inverse temperature of 5."""
    reader = CalmTranscriptReader(CalmConfig(transcript_loss_weight=1.0), 8)
    torch.nn.init.constant_(reader.logit_scale, np.log(5))
    torch.nn.init.normal_(reader.blank_embedding)
    return reader


def test_transcript_loss_sums_over_all_ways_to_spread_a_transcript(reader):
    """By enumeration: tokens that pick a piece several times in a row say it once, those that pick none are silent."""
    mask = torch.tensor([[True, False, True, True, True], [True, True, True, False, False]])
    tokens, keys, key_ids = unit(2, 5, 8), reader.keys(unit(2, 8)).detach(), torch.tensor([7, 9])
    ids = torch.tensor([[9, -1, 7], [-1, 9, -1]])
    expected = 0.0
    for clip, real, row in zip(tokens, mask, ids, strict=True):
        spoken = [[7, 9].index(piece) + 1 for piece in row.tolist() if piece >= 0]
        probabilities = (5.0 * clip[real] @ keys.T).softmax(-1)
        ways = (way for way in product(range(3), repeat=len(probabilities)))
        right = [way for way in ways if [piece for piece, _ in groupby(way) if piece] == spoken]
        total = sum(probabilities[torch.arange(len(way)), list(way)].prod().item() for way in right)
        expected -= np.log(total) / len(spoken)
    said = reader(tokens, mask, keys)
    losses, fits = transcript_losses(said, mask.sum(-1), ids, key_ids)
    assert fits.all()
    assert losses.sum().item() == pytest.approx(expected, rel=1e-5)


def test_clips_too_short_for_their_transcript_take_no_part(reader):
    """Fast speech may have more pieces than tokens; an infinite loss would end the training."""
    tokens = unit(5, 3, 8).requires_grad_()
    lengths = torch.tensor([3, 3, 2, 3, 0])
    ids = torch.tensor([[1, 2, 3, -1], [1, 2, 3, 4], [1, 1, -1, -1], [-1, -1, -1, -1], [1, -1, -1, -1]])
    mask = torch.arange(3) < lengths[:, None]
    said = reader(tokens, mask, reader.keys(unit(4, 8)))
    losses, fits = transcript_losses(said, lengths, ids, torch.tensor([1, 2, 3, 4]))
    losses.sum().backward()
    assert fits.tolist() == [True, False, False, False, False]
    assert losses[0] > 0 and not losses[1:].any()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.flatten(1).any(-1).tolist() == [True, False, False, False, False]
