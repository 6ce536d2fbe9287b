"""`benchmarks/plan.py`: its operations are those of the matrices, its plan is arithmetic."""

import argparse

import numpy as np
import pytest
import soundfile
from example_helpers import load_json
from plan import count_operations, derive, main, parse

SMALL = ["--audio_config", "tiny", "--text_layers", "1", "--text_width", "64", "--seconds", "2.4", "--words", "4"]


def test_operations_are_six_for_each_weight_and_each_vector_it_sees():
    """Two in the forward pass, four in the backward: Kaplan et al. 2020, section 2.1. Attention is small beside."""
    options = parse([*SMALL, "--stage", "align", "--no_recompute"])
    width, inner, patch = 128, 512, 320  # of examples/configs/tiny.yaml, and four frames of 80 bins
    layer = 4 * width**2 + 2 * width * inner
    each_second = 25 * (2 * layer + patch * width) + 25 / 6 * (2 * layer + width * 64)  # sub-tokens, acoustic tokens
    assert count_operations(options) == pytest.approx(6 * each_second, rel=0.1)


def test_recomputation_costs_one_more_forward_pass():
    plain, recomputed = (
        count_operations(parse([*SMALL, "--stage", "fuse", *more])) for more in (["--no_recompute"], [])
    )
    assert recomputed / plain == pytest.approx(4 / 3, abs=0.1)


@pytest.fixture
def options() -> argparse.Namespace:
    """A thousand hours twice, on four GPUs that do 0.5 TFLOP/s each."""
    return parse(
        ["--hours=1000", "--passes=2", "--gpus=4", "--peak=1", "--utilisation=0.5", "--cores=10", "--batch=100"]
    )


def test_a_plan_is_arithmetic(options):
    work = {"operations": 1e9, "core_rate": 100.0, "feature_core_rate": 1000.0, "flac_bytes": 16000.0}
    plan = derive(options, work)
    assert (plan["gpu_rate"], plan["data_rate"], plan["cores_needed"]) == pytest.approx((500, 1000, 5))
    assert (plan["gpu_hours"], plan["wall_hours"], plan["cost"]) == pytest.approx((4, 1, 12))
    # 32,000, 16,000 and 100 x 80 x 2 bytes a second
    storage = [plan[f"{kind}_terabytes"] for kind in ("wav", "flac", "feature")]
    assert storage == pytest.approx([0.1152, 0.0576, 0.0576])
    assert plan["contrastive_batch"] == 400
    assert plan["steps"] == 2 * (600_000 // 400)


def test_too_few_cores_keep_the_gpus_waiting(options):
    options.cores = 2
    plan = derive(options, {"operations": 1e9, "core_rate": 100.0, "feature_core_rate": 1000.0})
    assert (plan["gpu_hours_at_best"], plan["gpu_hours"], plan["cost"]) == pytest.approx((4, 10, 30))


def test_the_table_tells_what_is_measured_and_what_is_assumed(tmp_path, capsys):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    soundfile.write(recordings / "clip.flac", np.random.default_rng(0).normal(scale=0.1, size=16000), 16000)
    quick = ["--timing", "0.05", "--recordings", str(recordings), "--output", str(tmp_path / "plan.json")]
    plan = main([*SMALL, "--stage", "align", *quick])
    assert load_json(tmp_path / "plan.json") == plan
    printed = capsys.readouterr().out
    assert {line.rsplit("|", 2)[1].strip() for line in printed.splitlines()[5:]} == {"measured", "assumed", "derived"}
    assert plan["measured"]["flac_bytes"] == (recordings / "clip.flac").stat().st_size
    with pytest.raises(ValueError, match="no FLAC file"):
        main([*SMALL, "--stage", "align", "--recordings", str(tmp_path / "nowhere")])
