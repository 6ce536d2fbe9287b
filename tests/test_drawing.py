"""The figures of the results show the numbers of their JSON: estimates, intervals, seeds, counts."""

import pytest

pytest.importorskip("matplotlib", reason='the plots need matplotlib: pip install -e ".[plot]"')

import drawing  # noqa: E402
import numpy as np  # noqa: E402
from figures import BLUE, GREY, ORANGE  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402


def interval(estimate: float, reach: float = 0.1) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - reach, "high": estimate + reach}


def test_whiskers_reach_from_the_estimate_to_the_interval():
    """Asymmetric ones too; matplotlib takes lengths, not places."""
    estimates, reach = drawing.whiskers([{"estimate": 0.5, "low": 0.2, "high": 0.6}, interval(0.3)])
    assert estimates == [0.5, 0.3]
    np.testing.assert_allclose(reach, [[0.3, 0.1], [0.1, 0.1]])


def test_accuracy_stands_at_the_mean_length():
    groups = [{"clips": 7, "mean": s, "recall@1": interval(1 / s), "reciprocal_rank": interval(0.5)} for s in (2, 4)]
    figure = drawing.draw_length({"before": {"by_length": groups}, "after": {"by_length": groups[::-1]}})
    before = figure.axes[0].lines[0].get_xydata().tolist()
    assert before == [[2, 0.5], [4, 0.25]]
    assert [text.get_text() for text in figure.axes[1].texts] == ["7 clips", "7 clips"]


def test_every_rate_has_a_bar_before_and_after():
    rates = {
        rate: {"before": {"audio_to_text_recall@1_interval": interval(value)}, "after": {
            "audio_to_text_recall@1_interval": interval(2 * value)}}
        for rate, value in (("patches", 0.1), ("windows", 0.3))
    }  # fmt: skip
    (axes,) = drawing.draw_rates({"words_by_rate": rates}).axes  # no panel for what was not measured
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.1, 0.3, 0.2, 0.6])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["patches", "windows"]


def test_differences_are_coloured_by_their_interval():
    """Grey where it holds 0: nothing was shown there. Every seed is a dot."""
    variants = {
        name: {"word_reading": {"difference": interval(value) | {"seeds": [value - 0.05, value + 0.05]}}}
        for name, value in (("worse", -0.3), ("alike", 0.05), ("better", 0.2))
    }
    base = {"word_reading": {"mean": 0.5}}
    (axes,) = drawing.draw_ablations({"base": base, "variants": variants}).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([-0.3, 0.05, 0.2])
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [ORANGE, GREY, BLUE]
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots, [[-0.35, -0.25], [0, 0.1], [0.15, 0.25]])
    assert axes.get_title() == "word reading\nbase 0.500"
