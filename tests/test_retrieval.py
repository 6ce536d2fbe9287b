"""`processing.retrieval`: hand-worked rankings, the equations transcribed word by word, and what must be refused."""

import math

import numpy as np
import pytest
import torch

from processing.retrieval import (
    alignment,
    audio_text_ranks,
    audio_text_retrieval,
    modality_gap,
    retrieval_metrics,
    retrieval_ranks,
    uniformity,
)


def average_precision(scores: list[float], relevant: list[bool], k: int) -> float:
    """Average precision of one query as in a textbook: walk down the list, ties with the relevant ones last."""
    places = sorted(range(len(scores)), key=lambda c: (-scores[c], relevant[c]))
    found, total = 0, 0.0
    for place, candidate in enumerate(places[:k], start=1):
        if relevant[candidate]:
            found += 1
            total += found / place
    return total / min(sum(relevant), k)


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_vectorised_numbers_are_the_equations(levels):
    """With 3 levels of score nearly everything is tied, with 1000 next to nothing; some queries have many answers."""
    generator = np.random.default_rng(0)
    similarity = generator.integers(levels, size=(50, 30)) / levels
    relevant = generator.random((50, 30)) < 0.1
    relevant[np.arange(50), generator.integers(30, size=50)] = True
    relevant[0] = True  # more relevant candidates than places
    ranks = []
    for scores, answers in zip(similarity, relevant, strict=True):
        best = max(scores[answers])
        ranks.append(1 + sum(score >= best for score, answer in zip(scores, answers, strict=True) if not answer))
    found = retrieval_metrics(similarity, relevant)
    assert retrieval_ranks(similarity, relevant).tolist() == ranks
    for k in (1, 5, 10):
        assert found[f"recall@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / 50)
    assert found["map@10"] == pytest.approx(
        sum(average_precision(s, r, 10) for s, r in zip(similarity.tolist(), relevant.tolist(), strict=True)) / 50
    )
    assert found["median_rank"] == np.median(ranks)


def test_a_ranking_by_hand():
    """Relevant at places 1, 3 and 12 of 12: AP@10 is (1/1 + 2/3) / 3; the third is found too late."""
    similarity = -np.arange(12.0)[None]
    relevant = np.isin(np.arange(12), (0, 2, 11))[None]
    found = retrieval_metrics(similarity, relevant)
    assert found["map@10"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["recall@1"] == 1
    # And with the only relevant one at place 7, of which R@5 knows nothing.
    found = retrieval_metrics(similarity, (np.arange(12) == 6)[None])
    expected = {"recall@1": 0, "recall@5": 0, "recall@10": 1, "map@10": 1 / 7, "median_rank": 7}
    assert found == pytest.approx(expected)


def test_a_model_that_scores_everything_alike_finds_nothing():
    """With ties decided for the system, or by position, a collapsed model would reach R@1 = 1, or chance."""
    relevant = np.eye(20, dtype=bool)
    expected = {"recall@1": 0, "recall@5": 0, "recall@10": 0, "map@10": 0, "median_rank": 20}
    assert retrieval_metrics(np.zeros((20, 20)), relevant) == expected
    assert retrieval_metrics(np.full((20, 20), -np.inf), relevant) == expected


def test_two_answers_tied_with_each_other_harm_nobody():
    """Ties count against the system only where the other candidate is wrong."""
    found = retrieval_metrics([[0.9, 0.9, 0.1]], [[True, True, False]])
    assert found["median_rank"] == 1
    assert found["map@10"] == 1


def test_the_order_of_queries_and_candidates_does_not_matter():
    """A metric that depends on the order of the files is decided by the file system."""
    generator = np.random.default_rng(0)
    similarity, relevant = generator.integers(4, size=(20, 15)) / 4, np.arange(20)[:, None] % 15 == np.arange(15)
    queries, candidates = generator.permutation(20), generator.permutation(15)
    shuffled = retrieval_metrics(similarity[queries][:, candidates], relevant[queries][:, candidates])
    assert shuffled == pytest.approx(retrieval_metrics(similarity, relevant))


def test_what_cannot_be_scored_is_an_error():
    """NaN compares false with everything: it would take rank 1 for every query."""
    similarity, relevant = np.zeros((3, 3)), np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="query 1 has a NaN"):
        retrieval_metrics(np.where(np.eye(3)[[0, 2, 1]], similarity, [[0], [np.nan], [0]]), relevant)
    with pytest.raises(ValueError, match="query 2 has no relevant candidate"):
        retrieval_metrics(similarity, relevant & (np.arange(3) < 2))
    for scores, answers in [(similarity, relevant[:2]), (similarity[0], relevant[0]), (similarity, np.eye(3))]:
        with pytest.raises(ValueError, match="one shape"):
            retrieval_metrics(scores, answers)
    with pytest.raises(ValueError, match="no query"):
        retrieval_metrics(similarity[:0], relevant[:0])


def test_clips_with_the_same_transcript_are_one_text_and_all_right():
    """By hand: three clips say two texts. The clip of "no" lies nearest to "yes", all else is where it belongs.

    Counted with duplicates, each clip of "yes" would compete with its own transcript and lose by the tie.
    """
    yes, no = [1.0, 0.0], [0.0, 1.0]
    scores = audio_text_retrieval([yes, yes, [0.8, 0.6]], [yes, yes, no], ["yes", "yes", "no"])
    assert (scores["num_clips"], scores["num_texts"]) == (3, 2)
    assert scores["audio_to_text_recall@1"] == pytest.approx(2 / 3)
    assert scores["audio_to_text_map@10"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    # "yes" finds both of its clips first; "no" has only its own, at 0.6 before the 0.0 of the others.
    assert scores["text_to_audio_recall@1"] == 1
    assert scores["text_to_audio_map@10"] == 1


def test_retrieval_agrees_with_the_plain_matrix_where_no_text_repeats():
    """With distinct texts, clip i must find text i: an index mixed up while removing duplicates would show."""
    generator = np.random.default_rng(0)
    text = generator.standard_normal((40, 16))
    audio = text + generator.standard_normal((40, 16))
    cosines = np.array([[t @ a / math.sqrt(t @ t) / math.sqrt(a @ a) for t in text] for a in audio])
    scores = audio_text_retrieval(torch.tensor(audio), torch.tensor(text), [f"text {i}" for i in range(40)])
    for direction, similarity in (("audio_to_text", cosines), ("text_to_audio", cosines.T)):
        for name, value in retrieval_metrics(similarity, np.eye(40, dtype=bool)).items():
            assert scores[f"{direction}_{name}"] == pytest.approx(value)


def test_ranks_are_those_that_retrieval_is_made_of():
    """An interval resamples the ranks; it must be one of the very figure it stands beside."""
    generator = np.random.default_rng(0)
    audio, texts = generator.normal(size=(30, 4)), [f"text {i % 12}" for i in range(30)]
    text = generator.normal(size=(12, 4))[np.arange(30) % 12]
    ranks, scores = audio_text_ranks(audio, text, texts), audio_text_retrieval(audio, text, texts)
    for k in (1, 5, 10):
        assert (ranks <= k).mean() == scores[f"audio_to_text_recall@{k}"]
    assert np.median(ranks) == scores["audio_to_text_median_rank"]


def test_a_collapsed_model_scores_nothing_despite_rounding():
    """Equal up to float32 noise, embeddings would be ranked by that noise: R@1 of 1/N instead of 0."""
    generator = np.random.default_rng(0)
    point = generator.standard_normal(64).astype(np.float32)
    audio = point * (1 + 1e-7 * generator.standard_normal((50, 64)))
    scores = audio_text_retrieval(audio, np.tile(point, (50, 1)), [str(i) for i in range(50)])
    assert scores["audio_to_text_recall@10"] == 0
    assert scores["text_to_audio_recall@10"] == 0


def test_alignment_and_uniformity_are_the_equations():
    """Transcribed from Wang & Isola, section 4.1, pair by pair, on rows of any length."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 12, 5))
    unit_x, unit_y = ([row / math.sqrt(sum(v * v for v in row)) for row in rows] for rows in (x, y))
    pairs = [sum((a - b) ** 2) for a, b in zip(unit_x, unit_y, strict=True)]
    assert alignment(x, y) == pytest.approx(sum(pairs) / 12)
    for t in (2, 5):
        potentials = [math.exp(-t * sum((unit_x[i] - unit_x[j]) ** 2)) for i in range(12) for j in range(i)]
        assert uniformity(x, t) == pytest.approx(math.log(sum(potentials) / len(potentials)))


def test_geometry_at_its_ends():
    """Aligned is 0, opposite 4; one point is as uneven as can be, 0, and an even spread in many dimensions is -2t."""
    points = np.random.default_rng(0).standard_normal((500, 256))
    assert alignment(points, 3 * points) == pytest.approx(0, abs=1e-12)
    assert alignment(points, -points) == pytest.approx(4)
    assert uniformity(np.ones((10, 4))) == pytest.approx(0, abs=1e-9)
    assert uniformity(points) == pytest.approx(-4, abs=0.1)  # in many dimensions all distances are sqrt(2)
    assert modality_gap(points, points[::-1]) == pytest.approx(0, abs=1e-12)
    assert modality_gap([[1, 0], [5, 0]], [[-2, 0]]) == pytest.approx(2)


def test_embeddings_without_a_direction_are_an_error():
    """A zero or NaN embedding is a fault of the model; scored as cosine 0 it would hide in the mean."""
    good = np.eye(3)
    for bad in (np.diag([1.0, 0.0, 1.0]), np.diag([1.0, np.nan, 1.0]), np.diag([1.0, np.inf, 1.0])):
        for metric in (alignment, modality_gap, lambda x, y: audio_text_retrieval(x, y, list("abc"))):
            with pytest.raises(ValueError, match="embedding 1 is zero or not finite"):
                metric(good, bad)
        with pytest.raises(ValueError, match="embedding 1"):
            uniformity(bad)
    with pytest.raises(ValueError, match="one shape"):
        alignment(good, good[:2])
    with pytest.raises(ValueError, match="one width"):
        modality_gap(good, np.ones((3, 2)))
    with pytest.raises(ValueError, match="3 embeddings and 2 texts"):
        audio_text_retrieval(good, good, ["a", "b"])
    with pytest.raises(ValueError, match="two embeddings"):
        uniformity(good[:1])
    with pytest.raises(ValueError, match="at least one row"):
        uniformity(good[0])
