"""`make bench`: what is compared is comparable, and every figure is what its name says. No speed is asserted."""

import argparse
import json

import encoder_memory
import encoders
import features
import inference
import loading
import numpy as np
import peers
import pytest
import report
import timing
import torch
import training_steps
from pretrain import PretrainingArguments

QUICK = ["--quick", "--rounds", "1", "--threads", "1", "--device", "cpu"]
FIELDS = {"subject", "case", "peer", "ours", "theirs", "unit", "ratio", "goal", "met"}


@pytest.fixture
def options() -> argparse.Namespace:
    return report.parse("", QUICK)


def test_candidates_take_turns_and_warmups_do_not_count():
    """A slow minute must fall on all of them."""
    order = []
    seconds = timing.interleave({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, warmups=1)
    assert order == list("abc") * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ValueError, match="nothing to time"):
        timing.interleave({}, rounds=3)


def test_a_ratio_is_the_median_within_rounds():
    """The machine is ten times slower in the second round, for both: the ratio does not see it."""
    seconds = {"CALM": [1.0, 10.0, 2.0], "peer": [3.0, 30.0, 10.0]}
    assert timing.ratio(seconds, "CALM", "peer") == 3.0  # the ratio of the medians would be 5
    assert timing.spread(seconds["peer"]) == {"median": 10.0, "min": 3.0, "max": 30.0}


def test_the_goal_is_put_to_the_fastest_peer():
    seconds = {"CALM": [1.0], "slow": [10.0], "fast": [2.0]}
    slow, fast = report.rate_lines("subject", "case", seconds, audio=20.0, peers=["slow", "fast"], goal=3.0)
    assert (slow["ours"], slow["theirs"], slow["ratio"], slow["met"]) == (20.0, 2.0, 10.0, None)
    assert (fast["theirs"], fast["ratio"], fast["met"]) == (10.0, 2.0, False)
    assert report.line("", "", "", 1.0, 1.0, "s", 1.05, ("at most", 1.1))["met"]


def test_the_share_of_flops_is_that_of_the_matrix_product():
    """Half the operations in the same time are half the speed; and torch counts two a multiplication and addition."""
    share, rates = timing.share_of_peak({"CALM": [2.0], timing.MATMUL: [2.0]}, "CALM", 50.0, 100.0)
    assert (share, rates) == (0.5, [25.0])
    product, operations = timing.matrix_product(size=8)
    assert timing.count_operations(product) == operations == 2 * 8**3


def test_every_extractor_reads_the_whole_batch():
    """A frame every 10 ms until the longest clip ends, a row a clip; what pads to 30 s makes more."""
    batch = features.draw_audio(np.array([1.0, 2.0]))
    made = {name: extract() for name, extract in features.extractors(batch).items()}
    assert {len(found) for found in made.values()} == {2}
    frames = {
        "CALM": made["CALM"].shape[1] * 4,
        "ClapFeatureExtractor": made["ClapFeatureExtractor"].shape[2],
        "ASTFeatureExtractor": made["ASTFeatureExtractor"].shape[1],
        "WhisperFeatureExtractor": made["WhisperFeatureExtractor"].shape[2],
        "kaldi-native-fbank": made["kaldi-native-fbank"].shape[1],
    }
    assert all(198 <= number <= 216 for number in frames.values()), frames
    assert made["WhisperFeatureExtractor, 30 s"].shape[2] == 3000
    assert all(made[name].std() > 0 for name in made)


def test_every_encoder_is_given_the_same_audio():
    """12 s: frames of 10 ms, samples of 16 kHz, windows of 10 s or 30 s that cover it."""
    given = {name: build(12, 2, peers.TOY).inputs for name, build in peers.encoders_for(12).items()}
    assert given["CALM"]["input_features"].shape == (2, 300, 320)  # patches of four frames
    assert given["ASTModel"]["input_values"].shape[:2] == (4, 1000)  # windows of 10 s
    assert given["Wav2Vec2Model"]["input_values"].shape == (2, 192000)
    assert given["WhisperEncoder"]["input_features"].shape == (2, 80, 1200)
    assert given["WhisperEncoder, padded to 30 s"]["input_features"].shape == (2, 80, 3000)
    assert given["ClapAudioModel"]["input_features"].shape == (4, 1, 1001, 64)
    assert peers.whisper(60, 2, peers.TOY).inputs["input_features"].shape == (4, 80, 3000)
    assert "WhisperEncoder, padded to 30 s" not in peers.encoders_for(60)


def test_the_encoders_have_one_size():
    """Built on no device, for their weights do not matter."""
    with torch.device("meta"):
        built = {name: build(10, 1, peers.BASE).model.config for name, build in peers.ENCODERS.items()}
    ours = built["CALM"]
    assert ours.num_hidden_layers + ours.num_context_layers == peers.BASE["num_hidden_layers"]
    for name in ("CALM", "ASTModel", "Wav2Vec2Model", "WhisperEncoder"):
        config = built[name]
        inner = getattr(config, "intermediate_size", None) or config.encoder_ffn_dim
        assert (config.hidden_size, config.num_attention_heads, inner) == (768, 12, 3072), name
    assert {built[name].num_hidden_layers for name in ("ASTModel", "Wav2Vec2Model", "WhisperEncoder")} == {12}


def test_a_step_changes_what_its_stage_trains(options):
    """In `align` the language model never runs and never moves; in `fuse` it does; its word embeddings stay."""
    options.clips, options.seconds = 2, 1
    for stage, moves in (("align", False), ("fuse", True)):
        model, batch = training_steps.calm(stage, options)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        training_steps.prepare(model, options)(batch)
        moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
        assert any("audio_model" in name for name in moved)
        assert any("text_model.encoder" in name for name in moved) == moves
        assert not any("word_embeddings" in name for name in moved)


def test_the_peers_train(options):
    """A step moves most of their weights too, or it would be less work than ours."""
    options.clips, options.seconds = 2, 1
    for build in (training_steps.clap, training_steps.dual):
        model, batch = build(options)
        before = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
        training_steps.prepare(model, options)(batch)
        after = [weight for weight in model.parameters() if weight.requires_grad]
        moved = sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert moved > len(after) / 2


def test_the_table_and_the_json_are_whole(tmp_path, monkeypatch, capsys):
    """The encoders and the memory of toys, here in one process; of toys no goal is judged."""
    monkeypatch.setattr(encoder_memory, "in_process", encoder_memory.peak_of_forward)
    file = tmp_path / "runs" / "bench.json"
    result = report.run(report.parse("", [*QUICK, "--output", str(file)]), encoders.measure, encoder_memory.measure)
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))
    assert {"device", "dtype", "threads", "torch", "transformers", "quick"} <= set(result["environment"])
    assert all(set(line) >= FIELDS and line["met"] is None for line in result["figures"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(result["figures"])


def test_batches_come_from_audio_and_from_features(tmp_path, minilm_folder):
    """The loaders that are timed are those of `pretrain.py --streaming`."""
    pytest.importorskip("espeakng_loader")
    shards = loading.make_shards(tmp_path, "tiny", 6)
    for kind in loading.GOALS:
        _, loader = loading.open_loader(shards, kind, PretrainingArguments(audio_config="tiny"), 4)
        assert len(next(iter(loader))["input_ids"]) == 4


def test_waiting_is_the_share_of_a_step_that_the_batch_takes(monkeypatch):
    """A batch takes 1 s and the work on it 3 s; the first two batches, which take an hour, do not count."""
    clock = [0.0]
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])

    def batches():
        for number in range(6):
            clock[0] += 3600 if number < loading.WARMUPS else 1
            yield number

    def step(batch):
        clock[0] += 3

    share, seconds = loading.waiting_share(batches(), step, 6, "cpu")
    assert (share, seconds) == (0.25, 4.0)


def test_an_hour_is_measured_against_a_minute(options, monkeypatch):
    """Both for each second of audio, so that 1 means linear."""
    monkeypatch.setattr(inference, "peak_in_process", lambda seconds, options: 1000 * seconds)
    time, memory = inference.hour(options)
    assert memory["ratio"] == 1.0
    assert time["ratio"] > 0
