"""A checkpoint is set beside the model it began as, and its accuracy against the length of the clips."""

import alignment
import numpy as np
import pretrain
import pytest
import torch
from evaluate import AlignedSpace
from example_helpers import assert_finite, load_json, run

from modeling_calm import CalmForPreTraining

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(scope="module")
def untouched(folder, corpus, new_model) -> str:
    """A run that trained nothing: its weights are those it began with."""
    options = ["--learning_rate", "0", "--lr_scheduler_type", "constant", "--seed", "7", "--text_learning_rate", "0"]
    run(pretrain, corpus, folder / "untouched", *new_model, *options, steps=1)
    return str(folder / "untouched")


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_before_training_is_where_the_run_began(untouched, folder, corpus):
    """To the bit, and so for a run that went on from another; else the comparison would be with any model."""
    began = CalmForPreTraining.from_pretrained(untouched)
    before = alignment.before_training(untouched)
    assert equal(before, began)
    onwards = str(folder / "onwards")
    run(pretrain, corpus, onwards, "--model", untouched, "--stage", "fuse", steps=3)
    assert equal(alignment.before_training(onwards), began)
    assert not equal(CalmForPreTraining.from_pretrained(onwards), began)


def test_a_folder_of_no_run_is_refused(saved, untouched):
    """Without its options nothing tells with what a checkpoint began."""
    model, folder = saved(CalmForPreTraining)
    with pytest.raises(ValueError, match=r"no `config\.yaml` of pretrain\.py"):
        alignment.before_training(folder)
    with pytest.raises(ValueError, match="another shape"):
        alignment.refuse_other_shapes(alignment.before_training(untouched), model, folder)
    with pytest.raises(ValueError, match="--model"):
        alignment.main([])


def test_groups_by_length_hold_every_clip_once():
    """Ranks grow with the length here: accuracy falls from group to group, and clips of one length stay together."""
    durations = np.array([4.0, 1, 2, 3, 1, 1, 4, 2])
    space = AlignedSpace({}, durations.astype(int), None, np.zeros((8, 3)))
    groups = alignment.by_length(space, durations, bins=4)
    assert [group["clips"] for group in groups] == [3, 3, 2]
    assert [(group["shortest"], group["longest"]) for group in groups] == [(1, 1), (2, 3), (4, 4)]
    assert [group["recall@1"]["estimate"] for group in groups] == [1, 0, 0]
    assert [group["reciprocal_rank"]["estimate"] for group in groups[::2]] == [1, 0.25]
    middle = groups[1]["reciprocal_rank"]
    assert middle["estimate"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert middle["low"] < middle["estimate"] < middle["high"]


def test_alignment_is_measured_and_drawn(aligned, corpus, tmp_path):
    """From a run's folder to a JSON and its figures; training is what the difference shows."""
    output = tmp_path / "made" / "alignment.json"
    options = ["--model", aligned, "--dataset", corpus, "--emotion_dataset", corpus, "--output", str(output)]
    alignment.main([*options, "--length_bins", "2", "--drawn_clips", "2"])
    report = load_json(output)
    assert_finite(report)
    before, after = report["results"]["before"], report["results"]["after"]
    assert after["alignment"] < before["alignment"], "matching clips and texts must have come nearer"
    assert after["audio_to_text_recall@1"] == 1.0 > before["audio_to_text_recall@1"]
    assert after["by_length"][0]["clips"] == 8, "clips of one length are one group"
    assert report["weights"][aligned] and len(report["results"]["emotion_by_rate"]) == 5
    drawn = {file.name for file in output.parent.glob("*.png")}
    assert drawn == {f"alignment-{name}.png" for name in ("similarity", "words", "length", "rates")}
