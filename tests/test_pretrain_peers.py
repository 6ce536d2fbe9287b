"""Pretraining for equal time: the budget holds, the schedule ends in it, and only the encoders differ."""

import pretrain_peers
import pytest
import torch
from example_helpers import assert_finite, load_json
from options import CalmTrainingArguments
from peer_encoders import load_peer
from pretrain_peers import OBJECTIVES, PLANNED_SHARE, WARMUP_STEPS, PeerArguments, Stopwatch, build, steps_for
from scoring import load_checkpoint
from transformers import AutoModel, TrainerControl, TrainerState

from modeling_calm import CalmForPreTraining

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
ENCODERS = ("calm", "ast", "wav2vec2")
SECONDS = 1.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(pretrain_peers.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def walk(clock, tmp_path):
    """`walk(stopwatch, seconds)`: a training of these steps, until it is stopped; returns how many were taken."""
    arguments, state = CalmTrainingArguments(output_dir=str(tmp_path)), TrainerState()

    def train(stopwatch, seconds) -> int:
        control = TrainerControl()
        stopwatch.on_train_begin(arguments, state, control)
        for number, each in enumerate(seconds, start=1):
            clock[0] += each
            stopwatch.on_step_end(arguments, state, control)
            if control.should_training_stop:
                return number
        return len(seconds)

    return train


def test_a_training_stops_before_the_step_that_would_not_fit(walk):
    """Or a slow machine would give an encoder more time than another."""
    assert walk(Stopwatch(10.0), [3.0] * 9) == 3
    assert walk(Stopwatch(10.0), [1.0] * 9) == 9
    assert walk(Stopwatch(), [1e6] * 9) == 9


def test_the_number_of_steps_fits_the_budget(walk):
    """The first steps, slow with workers that start, are paid for once and are no measure of the others."""
    stopwatch = Stopwatch()
    walk(stopwatch, [8.0] + [2.0] * (WARMUP_STEPS - 1) + [2.0] * 5)
    assert stopwatch.seconds_per_step() == pytest.approx(2.0)
    steps = steps_for(stopwatch, 100.0)
    assert PLANNED_SHARE * 100 - 2 < 6 + 2 * steps <= PLANNED_SHARE * 100
    with pytest.raises(ValueError, match="A step takes 2 s: raise `--seconds` 5"):
        steps_for(stopwatch, 5.0)


@pytest.fixture
def pretrain(corpus, new_model, tmp_path):
    """`pretrain(encoder, name, seconds, calibration_steps=4)`: a run; returns its results and its folder."""

    def run(encoder: str, name: str, seconds: float, calibration_steps: int = 4):
        output = tmp_path / name
        results = pretrain_peers.main(
            [
                "--encoder", encoder, "--seconds", str(seconds), "--calibration_steps", str(calibration_steps),
                *new_model, "--dataset", corpus, "--output_dir", str(output), "--per_device_train_batch_size", "4",
                "--dataloader_num_workers", "0", "--learning_rate", "3e-3", "--disable_tqdm", "true",
            ]
        )  # fmt: skip
        return results, output

    return run


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_run_keeps_its_budget_and_can_be_probed(encoder, pretrain):
    results, output = pretrain(encoder, "run", SECONDS)
    assert results["steps"] <= results["steps_planned"] and results["clips_seen"] == 4 * results["steps"]
    # A step that is slower than those before it may end late, on a busy machine the last one too.
    assert results["seconds"] < SECONDS + 10 * results["seconds"] / results["steps"]
    assert results["validation"]["eval_num_clips"] == 8
    assert_finite(load_json(output / "results.json"))
    assert (output / "config.yaml").is_file() and not list(output.glob("checkpoint-*"))
    if encoder == "calm":
        load_checkpoint(str(output), CalmForPreTraining)
    else:
        found, information = AutoModel.from_pretrained(output, output_loading_info=True)
        assert not information["missing_keys"]
        assert found.config.num_hidden_layers == 2  # one inside the windows, one across
        assert load_peer(str(output)).extractor.sampling_rate == 16000


def test_the_timing_leaves_no_trace(pretrain, monkeypatch):
    """However long it took: weights and draws begin where they would have begun. Wav2Vec2 draws in the model too."""
    monkeypatch.setattr(pretrain_peers, "steps_for", lambda stopwatch, seconds: 2)
    first, second = (pretrain("wav2vec2", f"run-{steps}", 600, calibration_steps=steps)[0] for steps in (1, 3))
    assert first["steps"] == 2 and first["weights"] == second["weights"]
    assert first["validation"]["eval_loss"] == second["validation"]["eval_loss"]


def test_only_the_encoders_differ(new_model, corpus):
    """Same target, same objective, the same parts in training: the encoder, its projection and the scale."""
    parts = {}
    for encoder in ENCODERS:
        arguments = PeerArguments(text_model=new_model[1], audio_config=new_model[3], encoder=encoder)
        model, _ = build(arguments, arguments.load_processor(), durations=[0.4] * 8)
        assert {name: getattr(model.config, name) for name in OBJECTIVES} == OBJECTIVES
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        parts[encoder] = {name.removeprefix("calm.").split(".")[0] for name in trained}
        words = model.get_input_embeddings().weight
        torch.testing.assert_close(words, AutoModel.from_pretrained(new_model[1]).get_input_embeddings().weight)
    assert set(map(frozenset, parts.values())) == {frozenset({"audio_model", "audio_projection", "logit_scale"})}


def test_what_is_not_equal_is_refused(new_model, corpus, tmp_path):
    with pytest.raises(ValueError, match="starts from random weights"):
        PeerArguments(model="runs/align")
    with pytest.raises(ValueError, match="must be positive"):
        PeerArguments(seconds=0)
    with pytest.raises(ValueError, match="leave out `--resume`"):
        pretrain_peers.main([*new_model, "--dataset", corpus, "--output_dir", str(tmp_path), "--resume"])
