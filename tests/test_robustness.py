"""Robustness: every system hears the same perturbed clips, and a change is that against its own clean figure."""

from functools import partial

import numpy as np
import pytest
import robustness
from example_helpers import assert_finite, load_json, waveform
from perturbations import PERTURBATIONS
from robustness import CLEAN, as_table, first_hits, measure, perturbed

from processing.metrics import unweighted_average_recall

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """What is tested is which figures are compared; how intervals are drawn is tested in test_bootstrap.py."""
    for name in ("bootstrap_interval", "paired_bootstrap"):
        monkeypatch.setattr(robustness, name, partial(getattr(robustness, name), num_resamples=20))


@pytest.fixture
def rows() -> list[dict]:
    return [{"audio": waveform(i), "row": i} for i in range(8)]


def test_noise_belongs_to_the_clip(rows):
    """Not to its place among others, or a system would hear other noise than the next."""
    noisy = perturbed(rows, "white noise, 10 dB")
    again = perturbed(rows[::-1], "white noise, 10 dB")[::-1]
    for one, other, row in zip(noisy, again, rows, strict=True):
        np.testing.assert_array_equal(one["audio"], other["audio"])
        assert not np.array_equal(one["audio"], row["audio"])
    draws = [one["audio"][:100] - row["audio"][:100] for one, row in zip(noisy, rows, strict=True)]
    assert abs(np.corrcoef(draws[0], draws[2])[0, 1]) < 0.5


def test_a_change_is_measured_against_the_clean_clips(rows):
    """A system that hears the level alone: 20 dB less is all wrong to it, 10 dB more changes nothing."""
    truth = np.arange(8) % 2
    levels = {CLEAN: 1.0}

    def listens(heard):
        softer = np.abs(heard[0]["audio"]).max() < 0.1 * levels[CLEAN]
        return np.stack([1 - truth if softer else truth] * 2)

    found = measure({"listens": listens, "deaf": lambda heard: truth[None]}, rows, unweighted_average_recall, truth)
    assert found["listens"].keys() == {CLEAN, *PERTURBATIONS}
    assert found["listens"]["level -20 dB"]["change"] == {"estimate": -1.0, "low": -1.0, "high": -1.0}
    for change in (CLEAN, "level +10 dB"):
        assert found["listens"][change]["interval"]["estimate"] == 1.0
        assert found["listens"][change]["change"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert {each["change"]["estimate"] for each in found["deaf"].values()} == {0.0}


def test_hits_are_first_ranks():
    assert first_hits(np.ones(4), np.array([1, 2, 1, 9])) == 0.5


def test_checkpoints_are_tried_side_by_side(aligned, fitted, corpus, tmp_path, capsys):
    """Learnt by heart, they know the clean clips; CALM does not see the level."""
    pytest.importorskip("opensmile", reason="needs the `baseline` extra")
    output = tmp_path / "made" / "robustness.json"
    results = robustness.main(
        ["--models", fitted, "--compare_models", fitted, "--probes", aligned, "--retrieval_models", aligned,
         "--retrieval_dataset", corpus, "--dataset", corpus, "--output", str(output)]
    )  # fmt: skip
    uar, recall = results["unweighted_average_recall"], results["audio_to_text_recall@1"]
    assert uar.keys() == {"calm", "compared", "calm_probe", "egemaps_svm"} and recall.keys() == {
        "calm",
        "calm_reading",
    }
    for found in (*uar.values(), recall["calm"]):
        assert found[CLEAN]["interval"]["estimate"] == 1.0
    for found in (uar["calm"], uar["calm_probe"], *recall.values()):
        assert found["level -20 dB"]["change"]["estimate"] == 0.0
    assert uar["calm"] == uar["compared"]
    assert_finite(load_json(output))
    table = output.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out and table == as_table(results) + "\n"
    assert len(table.splitlines()) == 2 + 1 + len(PERTURBATIONS)


def test_search_alone_is_tried_on_its_own_data(aligned, corpus, tmp_path):
    """The report would otherwise name the default data set, which was not even read."""
    output = tmp_path / "robustness.json"
    options = ["--retrieval_models", aligned, "--retrieval_dataset", corpus, "--output", str(output)]
    assert robustness.main(options).keys() == {"audio_to_text_recall@1"}
    assert load_json(output)["dataset"] == corpus


def test_what_cannot_be_compared_is_refused(fitted, aligned, corpus):
    """Classes in another order would turn an answer into another one."""
    for options, message in (
        ([], "Name what is tried"),
        (["--retrieval_models", aligned], "go together"),
        (["--models", fitted, "--label_column", "level"], r"tells \['calm', 'noisy'\].*\['0', '1', '2'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            robustness.main([*options, "--dataset", corpus])
