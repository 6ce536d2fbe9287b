"""What the tests of the pipelines share besides fixtures."""

import pytest

TEXTS = ["the cat sat on the mat", "a dog ran", "go", "red tree"]


def named(scores, labels: list[str] | None = None) -> list[dict]:
    """The answers of a pipeline that scores its labels so."""
    labels = [f"LABEL_{index}" for index in range(len(scores))] if labels is None else labels
    return [{"label": label, "score": score} for label, score in zip(labels, scores.tolist(), strict=True)]


def same(answers: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    """Two rankings of all labels agree."""
    answers, expected = ({answer["label"]: answer["score"] for answer in ranking} for ranking in (answers, expected))
    assert answers == pytest.approx(expected, abs=tolerance)
