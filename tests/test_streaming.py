"""The stream: every row once an epoch, whatever the ranks and workers; the same batches after a stop; little held."""

import os
import socket
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import prepare_data
import pretrain
import pytest
import soundfile
import speech_stream
import stream_collation
import torch
from example_helpers import RATE, load_json, rows, run, waveform, write_clips, write_table
from safetensors.torch import load_file
from stream_collation import StreamCollator
from stream_helpers import batches, flac, open_streams, write_parquet, write_tars
from training import ModelArguments

from processing import DataCollatorForCalmPreTraining, SeededCollator, SpecAugment, WaveformAugmentation, load_audio

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.mark.parametrize("write", [write_parquet, write_tars])
@pytest.mark.parametrize("sizes", [(7, 1, 13, 9, 3), (33,), (2, 31)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_row_comes_twice_and_none_is_always_missed(tmp_path, write, sizes, num_workers):
    """Uneven shards, and fewer than ranks and workers; a rank with a step less would leave the other waiting."""
    streams = open_streams(write(tmp_path, sizes), num_ranks=2)
    missed = []
    for epoch in range(2):
        taken = [batches(stream, epoch, num_workers) for stream in streams]
        assert [len(rank) for rank in taken] == [8, 8]  # of 33 rows, 2 ranks, batches of 2
        counts = Counter(clip for rank in taken for batch in rank for clip in batch)
        assert max(counts.values()) == 1 and len(counts) == 32
        missed += set(range(33)) - set(counts)
    if len(sizes) > 2:
        assert missed[0] != missed[1]


def test_empty_shards_and_empty_epochs(tmp_path):
    streams = open_streams(write_parquet(tmp_path, (0, 3, 0, 2)), num_ranks=2)
    assert sum(len(batch) for stream in streams for batch in batches(stream, 0, 2)) == 4
    with pytest.raises(ValueError, match="hold 5 rows, fewer than the 6 of one batch.*--per_device_train_batch_size"):
        open_streams(tmp_path, num_ranks=2, batch_size=3)


def test_every_epoch_and_seed_has_an_order_of_its_own_and_keeps_it(tmp_path):
    write_parquet(tmp_path, (20, 20))
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            (stream,), (again,) = open_streams(tmp_path, seed=seed), open_streams(tmp_path, seed=seed)
            orders[seed, epoch] = batches(stream, epoch)
            assert batches(again, epoch) == orders[seed, epoch]
    assert len({str(order) for order in orders.values()}) == 4
    flat = np.array(orders[0, 0]).ravel()
    assert (np.diff(flat) == 1).mean() < 0.3  # neighbours of the corpus do not stay together


@pytest.fixture
def watch(monkeypatch):
    """Counts what happens in this process: `rows` read, clips `decoded`."""
    counts = Counter()
    read_rows, load_audio = speech_stream.read_rows, stream_collation.load_audio

    def read(*args):
        for row in read_rows(*args):
            counts["rows"] += 1
            assert isinstance(row["audio"]["bytes"], bytes)
            yield row

    def load(*args):
        counts["decoded"] += 1
        return load_audio(*args)

    monkeypatch.setattr(speech_stream, "read_rows", read)
    monkeypatch.setattr(stream_collation, "load_audio", load)
    return counts


@pytest.fixture
def collator(new_model):
    """`collator()`: with every kind of random draw."""

    def make(num_workers: int = 0, **settings) -> StreamCollator:
        processor = ModelArguments(text_model=new_model[1], audio_config=new_model[3]).load_processor()
        drawing = DataCollatorForCalmPreTraining(
            processor, WaveformAugmentation(), SpecAugment(1, 20, 1, 4), mask_time_prob=0.5
        )
        refused = torch.zeros(max(num_workers, 1), 4, dtype=torch.long).share_memory_()
        return StreamCollator(SeededCollator(drawing, 0), processor, refused, **settings)

    return make


def test_the_buffer_holds_encoded_rows_and_no_more_than_its_size(tmp_path, watch, collator):
    """Decoded, an hour of speech takes 230 MB: a buffer of waveforms would not fit beside a model."""
    (stream,) = open_streams(write_parquet(tmp_path, (64, 64)), batch_size=4, shuffle_buffer=16)
    iterator = iter(stream)
    collate = collator()
    for step in range(1, stream.num_steps + 1):
        collate([next(iterator) for _ in range(4)])
        assert watch["decoded"] == 4 * step
        assert 0 <= watch["rows"] - watch["decoded"] <= 16 - 4


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("group", [False, True])
def test_a_resumed_epoch_has_the_same_batches_and_reads_no_more_than_a_window_again(
    tmp_path, watch, collator, num_workers, group
):
    """To the last draw of the augmentation; else a run that stopped is another run."""
    settings = {"num_ranks": 2, "shuffle_buffer": 6, "group_by_length": group}
    write_parquet(tmp_path, (23, 11, 30), clip=lambda i: flac(i, 0.2 + 0.01 * (i * 7 % 32)))
    collate = collator(num_workers)
    expected = batches(open_streams(tmp_path, **settings)[1], 1, num_workers, collate)
    for skipped in (1, 4, 7, 15):
        stream = open_streams(tmp_path, **settings)[1]
        stream.skip = (1, skipped)
        watch.clear()
        resumed = batches(stream, 1, num_workers, collate)
        assert resumed[:skipped] == [{}] * skipped and len(resumed) == len(expected) == 16
        for batch, other in zip(resumed[skipped:], expected[skipped:], strict=True):
            assert batch.keys() == other.keys()
            for key, value in other.items():
                assert batch[key] == value if key == "clips" else torch.equal(batch[key], value), key
        if num_workers == 0:
            assert watch["decoded"] == 2 * (16 - skipped)
            assert watch["rows"] <= watch["decoded"] + 6
    assert batches(stream, 0, num_workers, collate)[0]  # another epoch is not skipped


@pytest.mark.parametrize("column", ["duration", "none"])
def test_grouped_by_length_batches_hold_clips_of_like_length_on_all_ranks_at_once(tmp_path, column):
    """Padding is computed for nothing, and a rank with short clips waits for one with long clips."""

    def seconds(i):
        return 0.1 + 0.05 * (i * 37 % 64)

    durations = {"duration": seconds} if column == "duration" else {}
    write_parquet(tmp_path, (64, 64), clip=lambda i: flac(0, seconds(i)), **durations)

    def spread(group):
        streams = open_streams(tmp_path, 2, 4, shuffle_buffer=32, group_by_length=group)
        lengths = np.array([[[seconds(i) for i in batch] for batch in batches(stream)] for stream in streams])
        assert len({i for stream in streams for batch in batches(stream) for i in batch}) == 128
        return 1 - lengths.mean() / lengths.max(-1).mean(), np.abs(np.diff(lengths.mean(-1), axis=0)).mean()

    (padding, waiting), (grouped_padding, grouped_waiting) = spread(False), spread(True)
    assert grouped_padding < 0.35 * padding
    assert grouped_waiting < 0.5 * waiting


def spoilt(i: int) -> bytes | None:
    """Clips 3, 6 and 9 are no audio, cut short, and none."""
    content = flac(i)
    return {3: b"no audio", 6: content[: len(content) // 2], 9: None}.get(i, content)


def test_a_bad_row_is_named_with_its_shard(tmp_path, collator):
    (stream,) = open_streams(write_parquet(tmp_path, (2, 10), clip=spoilt))
    with pytest.raises(
        ValueError, match=r"row \d of '.*train-00001-of-00002.parquet' \('\d.flac'\).*--skip_bad_audio"
    ):
        batches(stream, 0, 0, collator())


def test_bad_rows_are_counted_by_reason_and_leave_smaller_batches(tmp_path, collator, caplog):
    (stream,) = open_streams(write_parquet(tmp_path, (2, 10), clip=spoilt), batch_size=4)
    collate = collator(skip_bad_audio=True)
    taken = batches(stream, 0, 0, collate)
    assert sum(len(batch["input_ids"]) for batch in taken) == 9 and len(taken) == 3
    assert collate.refused.tolist() == [[3, 0, 0, 0]]
    for clip, reason in ((3, "cannot be decoded"), (6, "truncated|cannot be decoded"), (9, "no bytes")):
        assert any(
            f"('{clip}.flac')" in line and any(r in line for r in reason.split("|")) for line in caplog.messages
        )


def test_transcripts_are_checked_as_they_come(tmp_path, collator):
    (stream,) = open_streams(write_parquet(tmp_path, (8,)), batch_size=8)
    read = list(stream)
    read[2] |= {"text": "  "}
    read[5] |= {"text": "кот"}
    collate = collator(skip_bad_audio=True)
    assert len(collate(read)["input_ids"]) == 6
    assert collate.refused.tolist() == [[0, 1, 1, 0]]
    with pytest.raises(ValueError, match="row 0.*knows no piece of the transcript 'кот'"):
        collator()([read[0] | {"id": "row 0", "text": "кот"}])


@pytest.mark.parametrize("features", [False, True])
def test_rows_without_room_are_refused(tmp_path, collator, features):
    """A language model with too few positions would end the run in the midst of it, and every attempt to resume it."""
    (stream,) = open_streams(write_parquet(tmp_path, (8,)), batch_size=8)
    read = list(stream)
    clips = [load_audio(row["audio"]) for row in read]
    slowest = 1.0 if features else 0.9
    needed = [len(clip) / RATE / slowest / 0.08 for clip in clips]  # tokens of 80 ms
    counts = []
    for limit in (64, int(min(needed)) + 2):  # [CLS], [SEP] and a word are three
        collate = collator(skip_bad_audio=True, features=features, max_tokens=limit)
        extractor = collate.processor.feature_extractor
        for row, clip in zip(read, clips, strict=True):
            if features:
                row["audio"] = extractor(clip, sampling_rate=RATE)["input_features"][0]
                collate.collator.collator.waveform_augmentation = None
        if limit == 64:
            assert len(collate(read)["input_ids"]) == 8
        else:
            with pytest.raises(ValueError, match="All 8 rows of a batch were refused:\n.*may need"):
                collate(read)
        counts.append(collate.refused.tolist())
    assert counts == [[[0, 0, 0, 0]], [[0, 0, 0, 8]]]


def test_nothing_but_bad_rows_is_an_error_even_when_they_are_skipped(tmp_path, collator):
    (stream,) = open_streams(write_parquet(tmp_path, (8,), clip=lambda i: b"nothing"), batch_size=4)
    with pytest.raises(ValueError, match=r"All 4 rows of a batch were refused:\n(  row.*\n){4}.*prepare_data.py"):
        batches(stream, 0, 0, collator(skip_bad_audio=True))


def test_a_shard_cannot_have_other_files_read(tmp_path, collator):
    """A path in a shard from elsewhere may name any file of this machine."""
    (clip,) = write_clips(tmp_path / "private", 1)
    write_parquet(tmp_path / "shards", (4,), clip=lambda i: None)
    (stream,) = open_streams(tmp_path / "shards")
    read = [row | {"audio": {"bytes": None, "path": str(clip)}} for row in stream]
    with pytest.raises(ValueError, match="files that a shard names are not opened"):
        collator()(read)


def test_a_header_that_claims_days_is_refused_before_memory_is_taken(tmp_path, collator):
    content = bytearray(flac(0))
    content[21:26] = bytes([content[21] | 0x0F]) + b"\xff\xff\xff\xff"  # 2^36 - 1 samples: 50 days
    (stream,) = open_streams(write_parquet(tmp_path, (2,), clip=lambda i: bytes(content)))
    with pytest.raises(ValueError, match="claims 429.* s, more than"):
        batches(stream, 0, 0, collator())


def test_a_missing_column_is_told_at_once(tmp_path):
    write_parquet(tmp_path, (4,))
    with pytest.raises(ValueError, match=r"no column 'said'; it has \['audio', 'text'\].*--text_column"):
        open_streams(tmp_path, columns={"text_column": "said"})
    with pytest.raises(ValueError, match="no column 'wav'.*--audio_column"):
        open_streams(tmp_path, columns={"audio_column": "wav"})


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three shards of 30 clips, and a validation split."""
    write_parquet(tmp_path / "corpus", (13, 7, 10))
    write_clips(tmp_path / "corpus" / "validation")
    write_table(tmp_path / "corpus" / "validation" / "metadata.csv", rows())
    return tmp_path / "corpus"


OPTIONS = [
    "--streaming", "--shuffle_buffer", "8", "--per_device_train_batch_size", "4", "--augment", "true",
    "--load_best_model_at_end", "false",
]  # fmt: skip


def test_a_streamed_run_that_stopped_becomes_the_run_that_did_not(shards, new_model, tmp_path, monkeypatch, watch):
    """Seven steps an epoch: stopped in the midst of the second, it ends with the same weights to the bit."""
    options = [*new_model, *OPTIONS, "--save_steps", "9"]
    run(pretrain, str(shards), tmp_path / "whole", *options, steps=16)
    assert load_json(tmp_path / "whole" / "trainer_state.json")["epoch"] == pytest.approx(16 / 7)

    class Stops(pretrain.CalmTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 11:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "CalmTrainer", Stops)
        with pytest.raises(KeyboardInterrupt):
            run(pretrain, str(shards), tmp_path / "parts", *options, steps=16)
    watch.clear()
    run(pretrain, str(shards), tmp_path / "parts", *options, "--resume", steps=16)
    assert watch["decoded"] <= 4 * (16 - 9 + 1)  # the loader is a batch ahead of the training
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, weight in whole.items():
        assert torch.equal(parts[name], weight), name


def test_a_stream_that_would_go_on_elsewhere_is_not_resumed(shards, new_model, tmp_path):
    """The steps would be counted alike, and some rows come twice or never."""
    run(pretrain, str(shards), tmp_path / "run", *new_model, *OPTIONS, steps=2)
    changed = [*OPTIONS, "--resume", "--seed", "7", "--shuffle_buffer", "16"]
    with pytest.raises(ValueError, match="stopped: shuffle_buffer was 8 and is 16, seed was 42 and is 7.*--model"):
        run(pretrain, str(shards), tmp_path / "run", *new_model, *changed, steps=3)


def test_the_validation_split_may_be_elsewhere(shards, corpus, new_model, tmp_path):
    options = [*new_model, *OPTIONS, "--validation_dataset", corpus]
    run(pretrain, str(shards / "train-*.parquet"), tmp_path / "run", *options, steps=1)
    assert load_json(tmp_path / "run" / "results.json")["validation"]["eval_num_clips"] == 8


@pytest.mark.parametrize("streamed", [True, False])
def test_the_same_option_groups_by_length_streamed_or_not(shards, new_model, tmp_path, streamed):
    """`Trainer` would look for a column `length`, and measure what the model is given first, the transcripts."""
    for i, file in enumerate(write_clips(tmp_path / "corpus" / "train", 48)):
        soundfile.write(file, waveform(i, 0.2 if i % 3 else 1.6), RATE)
    write_table(tmp_path / "corpus" / "train" / "metadata.csv", rows(48))
    corpus = str(tmp_path / "corpus")
    if streamed:
        prepare_data.main(["--dataset", corpus, "--output_dir", str(tmp_path / "shards"), "--splits", "train"])
        corpus = str(tmp_path / "shards")
    real = {}
    for strategy in ("random", "group_by_length"):
        options = [*new_model, "--validation_dataset", str(shards), "--train_sampling_strategy", strategy]
        options += ["--per_device_train_batch_size", "2", "--logging_steps", "24"] + ["--streaming"] * streamed
        run(pretrain, corpus, tmp_path / strategy, *options, steps=24)
        history = load_json(tmp_path / strategy / "trainer_state.json")["log_history"]
        real[strategy] = next(entry["real_patch_share"] for entry in history if "real_patch_share" in entry)
    assert real["group_by_length"] > 0.8 > 0.7 > real["random"]


RANK = """
import os, signal, sys
sys.path[:0] = {path}
import pretrain, stream_collation
from torch.utils.data import get_worker_info

decode, rank = stream_collation.StreamCollator._decode, os.environ["RANK"]

def tell(self, row):
    with open(f"{folder}/rank{{rank}}-{{get_worker_info().id}}.txt", "a") as file:
        file.write(row["id"].split("('")[1].split(".")[0] + "\\n")
    return decode(self, row)

class Dies(pretrain.CalmTrainer):
    def training_step(self, *args, **kwargs):
        if self.state.global_step == {dies_at} and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)

stream_collation.StreamCollator._decode = tell
pretrain.CalmTrainer = Dies
pretrain.main({arguments})
"""


@pytest.fixture
def launch(shards, new_model, tmp_path):
    """`launch(output, *options, dies_at=step)`: two processes of two workers, as `accelerate launch` starts them."""

    def run_two(output: Path, *options: str, dies_at: int = -1) -> str:
        arguments = [
            *new_model, *OPTIONS, "--dataset", str(shards), "--output_dir", str(output), "--disable_tqdm", "true",
            "--num_train_epochs", "2", "--eval_strategy", "epoch", "--use_cpu", "true", "--logging_steps", "1",
            "--dataloader_num_workers", "2", *options,
        ]  # fmt: skip
        path = [str(Path(pretrain.__file__).parent), str(Path(pretrain.__file__).parents[1])]
        script = tmp_path / "rank.py"
        script.write_text(RANK.format(path=path, folder=tmp_path, arguments=arguments, dies_at=dies_at))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        with socket.socket() as free:
            free.bind(("", 0))
            command += ["--main_process_port", str(free.getsockname()[1]), str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stderr

    return run_two


def test_two_processes_of_two_workers_train_on_every_clip_of_an_epoch(launch, tmp_path):
    """30 clips, two epochs of three batches of four on both ranks, the second epoch in another order."""
    told = launch(tmp_path / "run", "--save_strategy", "no")
    assert (tmp_path / "run" / "results.json").is_file(), told
    assert load_json(tmp_path / "run" / "trainer_state.json")["global_step"] == 6
    epochs = [[], []]
    for rank, worker in product(range(2), range(2)):
        clips = (tmp_path / f"rank{rank}-{worker}.txt").read_text().split()
        share = 4 if worker else 8  # of three batches in turn
        assert len(clips) == 2 * share
        assert clips[:share] != clips[share:]
        epochs[0] += clips[:share]
        epochs[1] += clips[share:]
    assert [len(set(clips)) for clips in epochs] == [24, 24]


@pytest.mark.slow
def test_two_processes_of_which_one_was_killed_go_on_to_the_same_end(launch, tmp_path):
    options = ["--save_strategy", "steps", "--save_steps", "4", "--eval_steps", "4", "--eval_strategy", "steps"]
    launch(tmp_path / "whole", *options)
    told = launch(tmp_path / "run", *options, dies_at=5)
    assert not (tmp_path / "run" / "results.json").exists() and "SIGKILL" in told
    told = launch(tmp_path / "run", *options, "--resume")
    assert (tmp_path / "run" / "results.json").is_file(), told
    whole, run = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for name, weight in whole.items():
        assert torch.equal(run[name], weight), name
