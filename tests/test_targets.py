"""Targets are judged as they are written: a share, a multiple of a baseline, or a paired interval above 0."""

import pytest
import targets
from tables import outcome, targets_table


def uar(estimate: float, low: float | None = None) -> dict:
    """Figures of a system, and those of the gain over it."""
    interval = {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05}
    found = {"unweighted_average_recall": estimate, "unweighted_average_recall_interval": interval}
    return found if low is None else found | {"difference": {"estimate": low + 0.02, "low": low, "high": low + 0.04}}


RETRIEVAL = {
    "audio_to_text_recall@1": 0.9, "audio_to_text_recall@5": 0.95, "word_reading": 0.6,
    "word_reading_other_transcript": 0.2,
}  # fmt: skip


def judged(results: dict) -> dict[tuple[str, str | None], dict]:
    rows, _ = targets.judge(results)
    return {(row["measure"], row["baseline"]): row for row in rows}


def test_a_figure_meets_what_it_reaches():
    """0.90 is at least 0.90; 0.95 misses 0.98 by 0.03, which the table says."""
    rows = judged({("retrieval", "speech_commands"): RETRIEVAL})
    met, missed = rows["audio to text R@1, by embeddings", None], rows["audio to text R@5, by embeddings", None]
    assert met["met"] and not missed["met"]
    assert (outcome(met), outcome(missed)) == ("met by 0.000", "**missed** by 0.030")
    assert rows["word reading", None]["met"]
    beside = rows["word reading", "another clip's transcript"]
    assert not beside["met"] and beside["margin"]["estimate"] == pytest.approx(0.6 - 4 * 0.2)


def test_a_multiple_is_that_of_the_baseline_measured_beside_it():
    """1.5 times 0.4 is 0.6; 1.25 times 0.5 is 0.625."""
    system = uar(0.61) | {"egemaps_svm": uar(0.4, 0.1), "compared": uar(0.5, 0.05)}
    rows = judged({("emotion", "emotion_en"): system})
    assert rows["UAR, classifier on frozen encoders", targets.NAMES["egemaps_svm"]]["met"]
    assert not rows["UAR, classifier on frozen encoders", targets.NAMES["compared"]]["met"]
    assert rows["UAR, classifier on frozen encoders", None]["margin"]["estimate"] == pytest.approx(-0.04)
    assert "at least 1.25 times that, 0.625" in targets_table(list(rows.values()))


def test_above_means_that_the_interval_excludes_nothing():
    """A higher mean alone is not above: the paired interval decides."""
    system = uar(0.5) | {"ast": uar(0.45, 0.01), "wav2vec2": uar(0.49, -0.01)}
    rows = judged({("equal_time", "emotion_en"): system})
    ast, wav2vec2 = (rows["UAR, linear probe after equal time", targets.NAMES[name]] for name in ("ast", "wav2vec2"))
    assert ast["met"] and not wav2vec2["met"]
    assert outcome(ast) == "met: +0.030 [+0.010, +0.050]"
    assert outcome(wav2vec2) == "**missed**: +0.010 [-0.010, +0.030]"


def test_what_was_not_measured_is_named():
    """A target that nobody measured must not look met, and one without its baseline is not judged."""
    rows, missing = targets.judge({("emotion", "emotion_en"): uar(0.7)})
    assert [row["met"] for row in rows] == [True]
    beside = [
        f"UAR, classifier on frozen encoders on emotion_en beside {targets.NAMES[name]}"
        for name in ("egemaps_svm", "compared")
    ]
    assert set(beside) <= set(missing) and "audio to text R@1, by reading on speech_read" in missing
    assert len(rows) + len(missing) == 2 + len(targets.TARGETS)
