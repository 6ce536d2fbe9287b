"""The comparison of probes: test labels decide nothing, seeds are averaged, and gains are paired."""

from functools import partial

import numpy as np
import probes
import pytest
from example_helpers import assert_finite, load_json
from frozen import Clips
from peer_encoders import PEERS, build_peer

from modeling_calm import CalmAudioConfig

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """How intervals are drawn is tested in test_bootstrap.py."""
    for name in ("bootstrap_interval", "paired_bootstrap"):
        monkeypatch.setattr(probes, name, partial(getattr(probes, name), num_resamples=100))


@pytest.fixture(scope="module")
def peers(folder) -> list[str]:
    """Two seeds of each peer, from random weights."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_context_layers": 1, "num_attention_heads": 4}
    config = CalmAudioConfig(**size, intermediate_size=64, num_mel_bins=16, patch_bins=16)
    folders = []
    for name in sorted(PEERS):
        for seed in (0, 1):
            peer = build_peer(name, config, max_length=46)
            folders.append(str(folder / f"{name}-{seed}"))
            peer.encoder.save_pretrained(folders[-1])
            peer.extractor.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def splits() -> tuple[Clips, Clips, Clips]:
    """Three splits of 200 clips, whose one sample tells the class in `sharp`, and half of the time in `blunt`."""
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    return tuple(Clips([np.array([label, generator.integers(2)]) for label in labels], labels) for _ in range(3))


def sharp(waveforms):
    return {"samples": np.stack(waveforms)[:, :1].astype(float)}


def blunt(waveforms):
    samples = np.stack(waveforms).astype(float)
    return {"samples": np.where(np.arange(len(samples))[:, None] % 4 < 2, samples[:, :1], samples[:, 1:])}


def test_test_labels_decide_nothing(splits):
    """With all of them wrong the probes and what was chosen are the same, and only the score turns round."""
    train, validation, test = splits
    found = {"calm": [sharp, blunt], "peer": [blunt]}
    once = probes.compare(found, splits)
    wrong = probes.compare(found, (train, validation, Clips(test.waveforms, 1 - test.labels)))
    assert once["validation"] == wrong["validation"] and once["representation"] == wrong["representation"]
    for right, other in zip(once["seeds"], wrong["seeds"], strict=True):
        assert (right["c"], right["validation"]) == (other["c"], other["validation"])
        assert right["test"] == pytest.approx(1 - other["test"])


def test_a_gain_is_above_where_its_interval_excludes_zero(splits):
    results = probes.compare({"calm": [sharp], "blunt": [blunt], "same": [sharp]}, splits)
    assert results["unweighted_average_recall"] == 1.0
    blunt_uar = results["blunt"]["unweighted_average_recall"]
    assert 0.6 < blunt_uar < 0.9
    assert results["blunt"]["above"] and results["blunt"]["difference"]["low"] > 0
    assert results["blunt"]["ratio"] == pytest.approx(1 / blunt_uar)
    assert not results["same"]["above"] and results["same"]["difference"]["estimate"] == 0
    both = probes.compare({"calm": [sharp, blunt]}, splits)
    assert both["unweighted_average_recall"] == pytest.approx((1 + blunt_uar) / 2)


def test_checkpoints_are_probed_beside_the_baselines(aligned, peers, corpus, tmp_path, capsys):
    """Clips learnt by heart are known again; two seeds of each peer are one system."""
    pytest.importorskip("opensmile", reason="needs the `baseline` extra")
    output = tmp_path / "made" / "probes.json"
    options = ["--models", aligned, "--peers", *peers, "--dataset", corpus, "--output", str(output)]
    results = probes.main(options)
    assert results["unweighted_average_recall"] == 1.0 and results["num_clips"] == 8
    for name in ("ast", "wav2vec2", "egemaps_svm", "log_mel"):
        assert {"unweighted_average_recall_interval", "difference", "above", "validation"} <= results[name].keys()
        assert len(results[name]["seeds"]) == (2 if name in PEERS else 1)
    report = load_json(output)
    assert_finite(report)
    assert set(report["weights"]) == {aligned, *peers}
    assert "gain over wav2vec2" in capsys.readouterr().out


def test_checkpoints_under_the_wrong_option_are_refused(aligned, peers, corpus):
    """A peer taken for CALM would be praised for what it did not do."""
    for options in (["--models", peers[0]], ["--models", aligned, "--peers", aligned], ["--peers", *peers]):
        with pytest.raises(ValueError, match="`--models` takes checkpoints of CALM and `--peers`"):
            probes.main([*options, "--dataset", corpus])
