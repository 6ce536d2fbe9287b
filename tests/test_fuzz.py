"""Damaged and malicious input: it is read, or refused by an error that the docstrings name; nothing crashes or bloats.

Every test feeds encoded clips, tables or calls that are nearly sound, in a process of its own whose memory is limited:
a crash of a decoder, or a length that a header claims and somebody believed, ends that process.
"""

import logging
import resource
import shutil

import datasets
import numpy as np
import psutil
import pytest
from example_helpers import write_clips
from fuzz_helpers import CLIPS, calls, damaged, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process_helpers import forked
from speech_data import DataArguments, read_split

from processing import AudioError, CalmProcessor, load_audio

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
ROOM = 2**29  # bytes that reading something small may take
LONG = pytest.mark.slow


def assert_survives(attempt, cases: int) -> None:
    """Run a property of `hypothesis` on so many cases; its report of a case that fails is in the captured output."""
    options = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,  # a change breaks it, not chance
        suppress_health_check=list(HealthCheck),
    )

    def task():
        limit = psutil.Process().memory_info().vms + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        logging.disable(logging.CRITICAL)
        options(attempt)()

    assert forked(task, timeout=3600) == 0


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=LONG)])
def test_any_bytes_are_a_clip_or_an_audio_error(cases):
    @given(damaged(CLIPS), st.sampled_from([16000, 1000, 384_000]))
    def attempt(content: bytes, rate: int):
        try:
            waveform = load_audio(content, sampling_rate=rate)
        except AudioError as error:
            assert str(error).startswith("<bytes>: ") and "alloc" not in str(error)
            return
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and waveform.size > 0
        assert np.isfinite(waveform).all()

    assert_survives(attempt, cases)


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=LONG)])
def test_the_processor_returns_finite_patches_or_a_value_error(processor: CalmProcessor, cases):
    size = processor.feature_extractor.patches_per_token

    @given(calls())
    def attempt(call: dict):
        try:
            batch = processor(**call)
        except ValueError:
            return
        for row, mask in zip(batch.get("input_features", []), batch.get("input_features_mask", []), strict=True):
            assert np.isfinite(np.asarray(row)).all()
            assert len(row) == len(mask) and len(row) % size == 0 and 0 < np.asarray(mask).sum() <= len(mask)

    assert_survives(attempt, cases)


@pytest.mark.parametrize("cases", [40, pytest.param(10_000, marks=LONG)])
def test_a_manifest_is_read_or_refused_and_opens_no_file_elsewhere(tmp_path, monkeypatch, cases):
    """Its rows may name anything, a private recording of this machine above all."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_clips(tmp_path / "corpus" / "train", 2)
    private = write_clips(tmp_path / "private", 3)[2]
    secret = load_audio(private)

    @given(tables(str(private)), st.booleans(), st.booleans())
    def attempt(table: tuple[str, bytes], label: bool, skip_bad_audio: bool):
        ending, content = table
        manifest = tmp_path / "corpus" / "train" / f"metadata.{ending}"
        manifest.write_bytes(content)
        try:
            dataset = read_split(
                DataArguments(dataset=str(tmp_path / "corpus"), skip_bad_audio=skip_bad_audio),
                "train",
                16000,
                label=label,
            )
            for row in dataset:
                assert row["text"].strip() and len(row["audio"]) > 0
                assert not np.array_equal(row["audio"], secret)
        except ValueError as error:
            assert str(error).strip()
        finally:
            manifest.unlink()
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    assert_survives(attempt, cases)
