"""Metrics of audio-text alignment: retrieval in both directions, and the geometry of the aligned space.

numpy only; inputs are arrays, lists or CPU tensors; rates are fractions, never percentages. Doubt counts against the
system: a tie in a ranking is lost, and what cannot be scored raises an error instead of giving NaN.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "alignment",
    "audio_text_ranks",
    "audio_text_retrieval",
    "both_directions",
    "modality_gap",
    "retrieval_metrics",
    "retrieval_ranks",
    "uniformity",
]

# Retrieval: Q queries, C candidates.


def _ranked_relevance(similarity: ArrayLike, relevant: ArrayLike) -> np.ndarray:
    """Relevance (Q, C), bool, sorted from the best to the worst score, with irrelevant candidates first in ties."""
    scores, relevant = np.asarray(similarity, dtype=np.float64), np.asarray(relevant)
    if scores.ndim != 2 or scores.shape != relevant.shape or relevant.dtype != bool:
        raise ValueError(
            "similarity and relevant (bool) must have one shape (num_queries, num_candidates), "
            f"got {scores.shape} and {relevant.shape} ({relevant.dtype})"
        )
    if len(scores) == 0:
        raise ValueError("there is no query to score")
    for what, bad in {"a NaN similarity": np.isnan(scores).any(1), "no relevant candidate": ~relevant.any(1)}.items():
        if bad.any():
            raise ValueError(f"query {bad.argmax()} has {what} ({bad.sum()} of {len(bad)} queries)")
    order = np.lexsort((relevant, -scores))
    return np.take_along_axis(relevant, order, axis=1)


def retrieval_ranks(similarity: ArrayLike, relevant: ArrayLike) -> np.ndarray:
    r"""Rank of the best relevant candidate of each query, $1 + |\{c \notin R : s_c \ge \max_{c' \in R} s_{c'}\}|$.

    $R$ are the relevant candidates of the query and $s$ its scores, so that a tie counts against the system. Resample
    these ranks for an interval over queries.

    Args:
        similarity: Scores `(num_queries, num_candidates)`, larger is closer; infinities are allowed.
        relevant: Which candidates answer which query, bool, same shape.

    Returns:
        Ranks from 1, shape `(num_queries,)`, int.

    Raises:
        ValueError: If the shapes differ, a similarity is NaN, or a query has no relevant candidate.

    Example:
        >>> retrieval_ranks([[0.9, 0.1], [0.5, 0.5]], [[True, False], [True, False]]).tolist()
        [1, 2]
    """
    return 1 + _ranked_relevance(similarity, relevant).argmax(axis=1)


def retrieval_metrics(similarity: ArrayLike, relevant: ArrayLike) -> dict[str, float]:
    r"""Recall@k, mean average precision and median rank; every query is scored, ties count against the system.

    With the rank $r_q$ of the best relevant candidate ([`retrieval_ranks`]) and the relevant candidates $R_q$

    $$ \mathrm{R@}k = \frac1Q \sum_q [r_q \le k] \qquad
       \mathrm{mAP@}k = \frac1Q \sum_q \frac{1}{\min(|R_q|, k)} \sum_{i=1}^{k} [c_{qi} \in R_q]\, P_q(i) $$

    where $c_{qi}$ is the candidate at rank $i$ and $P_q(i)$ the precision among the first $i$. Dividing by
    $\min(|R_q|, k)$, so that a perfect ranking scores 1, is our choice; TREC's `map_cut` divides by $|R_q|$.

    Args:
        similarity: Scores `(num_queries, num_candidates)`, larger is closer; infinities are allowed.
        relevant: Which candidates answer which query, bool, same shape.

    Returns:
        `recall@1`, `recall@5`, `recall@10`, `map@10` and `median_rank` (from 1).

    Raises:
        ValueError: If the shapes differ, a similarity is NaN, or a query has no relevant candidate.

    Example:
        >>> retrieval_metrics([[0.9, 0.1], [0.5, 0.5]], [[True, False], [True, False]])
        {'recall@1': 0.5, 'recall@5': 1.0, 'recall@10': 1.0, 'map@10': 0.75, 'median_rank': 1.5}
    """
    hits = _ranked_relevance(similarity, relevant)
    ranks = 1 + hits.argmax(axis=1)
    top = hits[:, :10]
    precision = top.cumsum(axis=1) / np.arange(1, top.shape[1] + 1)
    average_precision = (precision * top).sum(axis=1) / np.minimum(hits.sum(axis=1), 10)
    recalls = {f"recall@{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
    return {**recalls, "map@10": float(average_precision.mean()), "median_rank": float(np.median(ranks))}


def audio_text_retrieval(audio_embeds: ArrayLike, text_embeds: ArrayLike, texts: Sequence[str]) -> dict[str, float]:
    """Retrieval by cosine in both directions over the distinct transcripts.

    Clip to text: the candidates are the distinct transcripts, one of which is correct. Text to clip: the queries are
    the distinct transcripts, and every clip that says one is correct. Transcripts are the same if their strings are
    equal. Cosines are rounded to 6 decimals, the resolution of float32 embeddings, so that rounding errors cannot
    break a tie: a collapsed model scores 0, not a lucky value.

    Args:
        audio_embeds: Embeddings of the clips `(num_clips, E)`, of any norm.
        text_embeds: Embeddings of their transcripts, row by row, `(num_clips, E)`.
        texts: Their transcripts, `num_clips` strings.

    Returns:
        [`retrieval_metrics`] under the prefixes `audio_to_text_` and `text_to_audio_`, `num_clips` and `num_texts`.

    Raises:
        ValueError: If the shapes differ, or an embedding is zero or not finite.

    Example:
        >>> scores = audio_text_retrieval([[1, 0], [1, 0], [0, 1]], [[1, 0], [1, 0], [0, 1]], ["yes", "yes", "no"])
        >>> scores["audio_to_text_recall@1"], scores["text_to_audio_map@10"], scores["num_texts"]
        (1.0, 1.0, 2)
    """
    similarity, relevant = _transcript_similarity(audio_embeds, text_embeds, texts)
    scores = both_directions(similarity, relevant)
    return {**scores, "num_clips": len(similarity), "num_texts": similarity.shape[1]}


def both_directions(similarity: ArrayLike, relevant: ArrayLike, way: str = "") -> dict[str, float]:
    """[`retrieval_metrics`] from clips to texts and from texts to clips.

    Args:
        similarity: Scores `(num_clips, num_texts)`, larger is closer; infinities are allowed.
        relevant: Which texts are said in which clip, bool, same shape.
        way: Infix between direction and metric in the names, to distinguish these figures from others.

    Raises:
        ValueError: See [`retrieval_metrics`].

    Example:
        >>> scores = both_directions([[0.9, 0.1], [0.5, 0.6]], [[True, False], [False, True]], "reading_")
        >>> scores["audio_to_text_reading_recall@1"]
        1.0
    """
    similarity, relevant = np.asarray(similarity), np.asarray(relevant)
    directions = {
        "audio_to_text": retrieval_metrics(similarity, relevant),
        "text_to_audio": retrieval_metrics(similarity.T, relevant.T),
    }
    return {f"{name}_{way}{measure}": value for name, found in directions.items() for measure, value in found.items()}


def audio_text_ranks(audio_embeds: ArrayLike, text_embeds: ArrayLike, texts: Sequence[str]) -> np.ndarray:
    """Rank of each clip's transcript among the distinct ones, `(num_clips,)`, as [`audio_text_retrieval`] scores it.

    Resample these for an interval over clips, or relate them to a property of the clips, such as their length.

    Args:
        audio_embeds: Embeddings of the clips `(num_clips, E)`, of any norm.
        text_embeds: Embeddings of their transcripts, row by row, `(num_clips, E)`.
        texts: Their transcripts, `num_clips` strings.

    Raises:
        ValueError: If the shapes differ, or an embedding is zero or not finite.

    Example:
        >>> audio_text_ranks([[1, 0], [1, 0.1], [1, 0.2]], [[1, 0], [1, 0], [0, 1]], ["yes", "yes", "no"]).tolist()
        [1, 1, 2]
    """
    return retrieval_ranks(*_transcript_similarity(audio_embeds, text_embeds, texts))


def _transcript_similarity(
    audio_embeds: ArrayLike, text_embeds: ArrayLike, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of clips with distinct transcripts, and which clip says which, (num_clips, num_texts) each."""
    audio, text = _paired_rows(audio_embeds, text_embeds)
    if len(texts) != len(audio):
        raise ValueError(f"there are {len(audio)} embeddings and {len(texts)} texts")
    rows: dict[str, int] = {}  # distinct transcript -> its first row
    for row, transcript in enumerate(texts):
        rows.setdefault(transcript, row)
    columns = {transcript: column for column, transcript in enumerate(rows)}
    relevant = np.array([columns[transcript] for transcript in texts])[:, None] == np.arange(len(rows))
    similarity = np.round(audio @ text[list(rows.values())].T, 6)  # (num_clips, num_texts)
    return similarity, relevant


# Geometry of the aligned space, on the unit sphere: the rows are L2-normalised here.


def _unit_rows(embeds: ArrayLike) -> np.ndarray:
    """The rows of (N, E) scaled to norm 1, float64."""
    rows = np.asarray(embeds, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"embeddings must have shape (N, E) with at least one row, got {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        raise ValueError(f"embedding {bad.argmax()} is zero or not finite ({bad.sum()} of {len(rows)})")
    return rows / norms


def _paired_rows(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _unit_rows(x), _unit_rows(y)
    if x.shape != y.shape:
        raise ValueError(f"both sets of embeddings must have one shape (N, E), got {x.shape} and {y.shape}")
    return x, y


def alignment(x: ArrayLike, y: ArrayLike) -> float:
    r"""Mean squared distance of positive pairs, $\frac1N \sum_i \|x_i - y_i\|^2$, from 0 (aligned) to 4 (opposite).

    Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, section 4.1 with alpha = 2. Row i of `x` (N, E) belongs to row i of `y` (N, E).

    Raises:
        ValueError: If the shapes differ, or an embedding is zero or not finite.

    Example:
        >>> alignment([[1, 0], [0, 1]], [[1, 0], [1, 0]])
        1.0
    """
    x, y = _paired_rows(x, y)
    return float(((x - y) ** 2).sum(axis=1).mean())


def uniformity(x: ArrayLike, t: float = 2.0) -> float:
    r"""How evenly embeddings cover the sphere, $\log \frac{2}{N(N-1)} \sum_{i<j} e^{-t \|x_i - x_j\|^2}$.

    0 when all of `x` (N, E) are equal, smaller is more even. Wang & Isola (see [`alignment`]), section 4.1.

    Raises:
        ValueError: If there are fewer than two embeddings, or one is zero or not finite.

    Example:
        >>> uniformity([[1, 0], [-1, 0]])
        -8.0
    """
    x = _unit_rows(x)
    if len(x) < 2:
        raise ValueError("uniformity needs at least two embeddings")
    exponents = -t * (2 - 2 * (x @ x.T))  # squared distance of unit vectors
    np.fill_diagonal(exponents, -np.inf)  # no pairs of an embedding with itself
    return float(np.log(np.exp(exponents).sum() / (len(x) * (len(x) - 1))))


def modality_gap(audio: ArrayLike, text: ArrayLike) -> float:
    r"""Distance between the centres of two modalities, $\|\frac1N \sum_i a_i - \frac1M \sum_j t_j\|$, from 0 to 2.

    Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning",
    NeurIPS 2022. `audio` is (N, E), `text` (M, E).

    Raises:
        ValueError: If the widths differ, or an embedding is zero or not finite.

    Example:
        >>> modality_gap([[1, 0], [0, 1]], [[-1, 0], [0, 1]])
        1.0
    """
    audio, text = _unit_rows(audio), _unit_rows(text)
    if audio.shape[1] != text.shape[1]:
        raise ValueError(f"embeddings must have one width, got {audio.shape[1]} and {text.shape[1]}")
    return float(np.linalg.norm(audio.mean(axis=0) - text.mean(axis=0)))
