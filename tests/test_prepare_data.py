"""Preparation: what comes back is what went in, bad rows are named, a stopped one goes on, a changed input is seen."""

import io
import json
import os
from pathlib import Path

import numpy as np
import prepare_data
import pretrain
import pyarrow.parquet as pq
import pytest
import shard_writer
import soundfile
import speech_data
import stream_collation
from example_helpers import (
    RATE,
    TEXTS,
    assert_is_the_corpus,
    load_json,
    read,
    rows,
    run,
    waveform,
    write_clips,
    write_corpus,
    write_table,
)
from shard_writer import encode_audio
from stream_helpers import batches, open_streams, write_tars

import processing.collation
from processing import load_audio

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def prepare(corpus, output, *options: str) -> dict:
    return prepare_data.main(
        ["--dataset", str(corpus), "--output_dir", str(output), "--rows_per_shard", "3", *options]
    )


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Eight clips of each split, in shards of three."""
    prepare(write_corpus(tmp_path / "corpus"), tmp_path / "shards")
    return tmp_path / "shards"


def test_what_was_prepared_is_read_as_before_at_once_and_as_a_stream(prepared):
    assert [file.name for file in sorted((prepared / "train").iterdir())] == [
        f"train-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    dataset = read(prepared)
    assert_is_the_corpus(dataset)
    assert dataset[3]["speaker"] == "s1" and dataset[3]["file_name"] == "clip_3.wav"
    assert list(read(prepared, "validation")["text"]) == [row["text"] for row in rows()]
    assert list(read(prepared, "train", label_column="valence")["label"]) == [row["valence"] for row in rows()]
    (stream,) = open_streams(prepared)
    taken = [row for batch in batches(stream, collate=list) for row in batch]
    assert sorted(row["text"] for row in taken) == sorted(TEXTS)
    for row in taken:
        np.testing.assert_allclose(load_audio(row["audio"]), waveform(TEXTS.index(row["text"])), atol=1e-4)
        assert row["length"] == pytest.approx(0.4)
    report = load_json(prepared / "preparation.json")["splits"]["train"]
    assert report == {"clips": 8, "hours": round(8 * 0.4 / 3600, 4), "shards": 3, "refused": []}


@pytest.mark.parametrize("audio_format", ["flac", "int16", "float32"])
def test_sixteen_bits_stay_what_they_were(audio_format):
    """Scaled by 32767 and read by 32768, every loud sample would be off by one."""
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    samples[:2] = -32768, 32767
    content = encode_audio(samples / np.float32(32768), RATE, audio_format)
    assert (load_audio(content) * 32768 == samples).all()


@pytest.mark.parametrize("scale", [20000.0, 1e-6])
def test_what_16_bits_do_not_hold_is_refused_and_kept_in_floats(tmp_path, scale):
    """Floats in the scale of integers would be clipped to a square wave, and quiet ones become zeros."""
    corpus = write_corpus(tmp_path / "corpus")
    file = sorted((corpus / "train").glob("*.wav"))[0]
    samples, rate = soundfile.read(file, dtype="float32")
    soundfile.write(file, samples / np.abs(samples).max() * scale, rate, subtype="FLOAT")
    for audio_format, number in (("flac", 1), ("float32", 0)):
        shards = tmp_path / audio_format
        prepare(corpus, shards, "--splits", "train", "--audio_format", audio_format)
        refused = load_json(shards / "preparation.json")["splits"]["train"]["refused"]
        assert len(refused) == number and all("--audio_format float32" in str(row) for row in refused)


def test_any_rate_and_channels_become_the_models(tmp_path):
    time = np.arange(8000) / 8000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    soundfile.write(tmp_path / "slow.wav", np.stack([tone, tone], axis=1), 8000, subtype="FLOAT")
    manifest = write_table(tmp_path / "all.csv", [{"audio": "slow.wav", "text": "go"}])
    prepare(manifest, tmp_path / "shards", "--splits", "train", "--audio_format", "float32")
    (file,) = (tmp_path / "shards" / "train").iterdir()
    (row,) = pq.read_table(file).to_pylist()
    assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).samplerate == 16000
    np.testing.assert_array_equal(load_audio(row["audio"]), load_audio(tmp_path / "slow.wav"))


def test_bad_rows_are_left_out_and_reported(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", splits=("train",))
    content = (corpus / "train" / "clip_1.wav").read_bytes()
    (corpus / "train" / "clip_1.wav").write_bytes(content[: len(content) // 2])
    (corpus / "train" / "clip_4.wav").unlink()
    table = rows()
    table[6]["text"] = " "
    write_table(corpus / "train" / "metadata.csv", table)
    prepare(corpus, tmp_path / "shards", "--splits", "train", "--num_proc", "2")
    split = load_json(tmp_path / "shards" / "preparation.json")["splits"]["train"]
    assert split["clips"] == 5 and split["shards"] == 3
    assert [(row["row"], row["kind"]) for row in split["refused"]] == [(1, "audio"), (4, "audio"), (6, "transcript")]
    assert split["refused"][0]["file"] == str(corpus / "train" / "clip_1.wav")
    assert "truncated" in split["refused"][0]["reason"] and "no such file" in split["refused"][1]["reason"]
    assert list(read(tmp_path / "shards")["text"]) == [
        row["text"] for i, row in enumerate(table) if i not in (1, 4, 6)
    ]
    printed = capsys.readouterr().out
    assert "2 for the audio  1 for the transcript" in printed and "train, row 4: " in printed
    prepare(corpus, tmp_path / "all", "--splits", "train", "--keep_untranscribed")
    assert load_json(tmp_path / "all" / "preparation.json")["splits"]["train"]["clips"] == 6


def test_nothing_but_bad_rows_is_an_error(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", splits=("train",))
    for file in (corpus / "train").glob("*.wav"):
        file.write_text("none")
    with pytest.raises(ValueError, match=r"All 8 rows of split 'train' are refused.*\n  row 0: .*cannot be decoded"):
        prepare(corpus, tmp_path / "shards", "--splits", "train")
    assert not (tmp_path / "shards" / "train").exists()


class Killed(BaseException):
    """What no handler catches."""


def written(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}


def test_a_stopped_preparation_goes_on_where_it_was(tmp_path, monkeypatch):
    corpus, output = write_corpus(tmp_path / "corpus", splits=("train",)), tmp_path / "shards"
    encode = shard_writer.encode_audio

    def stop(samples, *args):
        if stop.clips == 5:
            raise Killed
        stop.clips += 1
        return encode(samples, *args)

    stop.clips = 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shard_writer, "encode_audio", stop)
        prepare(corpus, output, "--splits", "train")
    before = written(output / ".partial")
    assert list(before) == ["train-00000-of-00003.parquet"]  # the second was being written
    assert list((output / ".partial" / "train").glob("*.partial")) != []
    with pytest.raises(ValueError, match="no split 'train'|does not load"):
        read(output)  # half a split is none
    prepare(corpus, output, "--splits", "train")
    after = written(output)
    assert len(after) == 3 and before.items() <= after.items()
    assert_is_the_corpus(read(output))
    assert not (output / ".partial").exists()
    prepare(corpus, output, "--splits", "train")
    assert written(output) == after


@pytest.mark.parametrize("change", ["text", "audio", "settings"])
def test_a_changed_input_is_noticed(tmp_path, change, monkeypatch, caplog):
    corpus, output = write_corpus(tmp_path / "corpus", splits=("train",)), tmp_path / "shards"

    def alter():
        if change == "text":
            table = rows()
            table[7]["text"] = "red mat"
            write_table(corpus / "train" / "metadata.csv", table)
        elif change == "audio":
            soundfile.write(corpus / "train" / "clip_7.wav", waveform(0), RATE)
        return ["--splits", "train"] + ["--audio_format", "int16"] * (change == "settings")

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(Killed))  # all is written, nothing is ready
        prepare(corpus, output, "--splits", "train")
    assert len(written(output / ".partial")) == 3
    options = alter()
    prepare(corpus, output, *options)
    assert "the data or the settings changed; 3 shards are written anew" in caplog.text
    dataset = read(output)
    assert dataset[7]["text"] == ("red mat" if change == "text" else TEXTS[7])
    np.testing.assert_allclose(dataset[7]["audio"], waveform(0 if change == "audio" else 7), atol=1e-4)
    (tmp_path / "touched").touch()
    write_clips(corpus / "train")
    os.utime(corpus / "train" / "clip_0.wav", (1, 1))
    with pytest.raises(ValueError, match="train' was prepared from other data or settings.*--output_dir"):
        prepare(corpus, output, *options)


def test_several_processes_write_the_same_shards(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", splits=("train",))
    for name, processes in (("one", "1"), ("three", "3")):
        prepare(corpus, tmp_path / name, "--splits", "train", "--num_proc", processes)
    for file in (tmp_path / "one" / "train").iterdir():
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "three" / "train" / file.name))


def test_tars_become_shards(tmp_path):
    names = ["--audio_column", "flac", "--text_column", "txt", "--splits", "train"]
    prepare(write_tars(tmp_path / "tars", (5, 3)), tmp_path / "shards", *names)
    assert list(read(tmp_path / "shards", label=False, audio_column="flac", text_column="txt")["text"]) == list(TEXTS)


def test_splits_may_be_prepared_one_by_one(tmp_path):
    """Each adds to the report of the others, also where one of them is not finished."""
    corpus = write_corpus(tmp_path / "corpus", splits=("train", "validation"))
    for name in ("validation", "train"):
        (tmp_path / "shards" / ".partial" / "unfinished").mkdir(parents=True, exist_ok=True)
        report = prepare(corpus, tmp_path / "shards", "--splits", name)
    assert set(report["splits"]) == {"train", "validation"}
    assert load_json(tmp_path / "shards" / "preparation.json") == report


def test_what_cannot_be_prepared_is_told(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", splits=("train",))
    with pytest.raises(ValueError, match="no split 'validation'.*--train_split"):
        prepare(corpus, tmp_path / "shards")
    with pytest.raises(ValueError, match="no column 'wav'.*--audio_column"):
        table = write_table(tmp_path / "all.csv", [{"audio": "corpus/train/clip_0.wav", "text": "go"}])
        prepare(table, tmp_path / "a", "--splits", "train", "--audio_column", "wav")
    with pytest.raises(ValueError, match="nothing to train on; add `--features float16`"):
        prepare(corpus, tmp_path / "b", "--splits", "train", "--audio_format", "none")
    with pytest.raises(ValueError, match="`--splits dev`: there are train, validation and test"):
        prepare(corpus, tmp_path / "c", "--splits", "dev")


@pytest.mark.parametrize("streaming", [True, False])
def test_training_on_features_touches_no_audio(tmp_path, new_model, streaming, monkeypatch):
    options = ["--features", "float16", "--audio_format", "none", "--audio_config", new_model[3]]
    prepare(write_corpus(tmp_path / "corpus"), tmp_path / "shards", *options)
    assert "audio" not in pq.read_schema(next((tmp_path / "shards" / "train").iterdir())).names
    arguments = [*new_model, "--features_column", "input_features"] + ["--streaming"] * streaming
    for module in (stream_collation, speech_data, processing.collation):
        name = "as_waveform" if module is processing.collation else "load_audio"
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("decoded"))
    run(pretrain, str(tmp_path / "shards"), tmp_path / "run", *arguments, steps=40)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["validation"]
    assert results["eval_audio_to_text_recall@1"] == 1.0  # eight clips are learnt by heart
    if not streaming:  # a stream is of whole splits
        run(
            pretrain, str(tmp_path / "shards"), tmp_path / "part", *arguments, "--train_split", "train[:4]+train[4:]",
            steps=1,
        )  # fmt: skip


def test_features_of_another_extractor_are_refused(tmp_path, new_model):
    """Of the right width, they would train a model that no recording fits."""
    other = tmp_path / "other.yaml"
    other.write_text(Path(new_model[3]).read_text() + "hop_length: 200\n")
    prepare(
        write_corpus(tmp_path / "corpus"), tmp_path / "shards", "--features", "float32", "--audio_config", str(other)
    )
    arguments = [*new_model, "--features_column", "input_features", "--streaming"]
    with pytest.raises(ValueError, match="do not fit the model: hop_length is 200 and not 160.*--audio_config"):
        run(pretrain, str(tmp_path / "shards"), tmp_path / "run", *arguments, steps=1)
    with pytest.raises(ValueError, match="does not tell how its features were computed"):
        prepare(tmp_path / "corpus", tmp_path / "plain")
        run(pretrain, str(tmp_path / "plain"), tmp_path / "run", *arguments, steps=1)
