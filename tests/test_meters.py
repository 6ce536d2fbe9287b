"""What a run logs besides its loss, against the batches it was trained on; over accumulation and over ranks."""

import json
import math
import time

import numpy as np
import pytest
import torch
from accelerate import PartialState
from meters import TermMeter, WorkMeter, peak_memory
from process_helpers import forked_ranks
from transformers import TrainerControl, TrainerState

CPU = torch.device("cpu")


def batch(words: list[int], windows: list[int], size: int) -> dict[str, torch.Tensor]:
    """Masks of clips with so many words and whole windows of `size` patches."""

    def mask(lengths, unit):
        return (torch.arange(max(lengths) * unit) < unit * torch.tensor(lengths)[:, None]).long()

    return {"attention_mask": mask(words, 1), "input_features_mask": mask(windows, size)}


@pytest.fixture
def meter(audio_config) -> WorkMeter:
    return WorkMeter(audio_config)


def train(meter: WorkMeter, *batches: dict, seconds: float) -> None:
    """A step of these micro-batches that takes so long."""
    meter.mark = time.perf_counter() - seconds
    for values in batches:
        meter.see(values)
    meter.on_step_end(None, TrainerState(), TrainerControl())


def test_throughput_and_padding_are_those_of_all_micro_batches(meter, audio_config):
    size, length = audio_config.patches_per_token, audio_config.seconds_per_token
    train(meter, batch([3, 1], [4, 2], size), batch([2, 2], [1, 1], size), seconds=0.5)
    train(meter, batch([1, 1], [1, 3], size), seconds=1.5)
    report = meter.report(CPU)
    assert report["audio_seconds_per_second"] == pytest.approx(12 * length / 2, rel=1e-2)
    assert report["real_patch_share"] == pytest.approx(12 / (8 + 2 + 6), abs=1e-4)
    assert report["real_position_share"] == pytest.approx((12 + 10) / (16 + 6 + 4 + 2), abs=1e-4)
    train(meter, batch([1], [1], size), seconds=1.0)
    assert meter.report(CPU)["real_patch_share"] == 1.0  # what was reported is gone


def test_a_patch_that_is_partly_real_counts(meter, audio_config):
    """As the mask says; a window that holds one counts as a position."""
    values = batch([1], [1], audio_config.patches_per_token)
    values["input_features_mask"][0, 1:] = 0
    train(meter, values, seconds=1.0)
    report = meter.report(CPU)
    assert report["real_patch_share"] == pytest.approx(1 / audio_config.patches_per_token, abs=1e-4)
    assert report["real_position_share"] == 1.0


def test_text_alone_has_no_throughput_of_audio(meter):
    train(meter, {"attention_mask": torch.tensor([[1, 1, 0, 0]])}, seconds=1.0)
    report = meter.report(CPU)
    assert report["real_position_share"] == 0.5
    assert not {"audio_seconds_per_second", "real_patch_share"} & set(report)


def test_evaluation_and_saving_are_no_training_time(meter):
    arguments = None, TrainerState(), TrainerControl()
    meter.on_train_begin(*arguments)
    for pause in (meter.on_evaluate, meter.on_save):
        time.sleep(0.05)
        pause(*arguments)
    meter.on_step_end(*arguments)
    assert meter.seconds < 0.04


def test_ranks_are_summed(audio_config, tmp_path):
    """Rank 1 works on twice as much speech; and one rank's terms count as much as their micro-batches."""
    size, length = audio_config.patches_per_token, audio_config.seconds_per_token

    def task(rank):
        PartialState(cpu=True)
        meter, terms = WorkMeter(audio_config), TermMeter()
        train(meter, batch([1, 1], [1 + rank, 1 + rank], size), seconds=1.0)
        for value in ([1.0], [2.0, 6.0])[rank]:
            terms.see({"audio_text_loss": torch.tensor(value)})
        report = meter.report(CPU) | terms.report(CPU)
        (tmp_path / f"{rank}.json").write_text(json.dumps(report))

    assert forked_ranks(task) == [0, 0]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0] == reports[1]
    assert reports[0]["audio_seconds_per_second"] == pytest.approx(6 * length, rel=0.05)
    assert reports[0]["audio_text_loss"] == 3.0


def test_terms_of_skipped_steps_are_left_out():
    terms = TermMeter()
    for value in (1.0, math.nan, math.inf, 2.0):
        terms.see({"audio_audio_loss": torch.tensor(value)})
    terms.see({"masked_language_loss": torch.tensor(math.nan)})
    assert terms.report(CPU) == {"audio_audio_loss": 1.5}
    assert terms.report(CPU) == {}


def test_peak_memory_is_the_largest_there_was():
    held = np.ones(2**28, np.uint8)  # 0.25 GiB
    peak = peak_memory(CPU)
    del held
    assert 0.25 < peak < 64
    assert peak_memory(CPU) >= peak
