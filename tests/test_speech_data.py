"""What comes out of a data set, and every fault of one told at once, by row and with a remedy, before training."""

import json
import logging

import datasets
import numpy as np
import pytest
import soundfile
from example_helpers import (
    RATE,
    assert_is_the_corpus,
    read,
    rows,
    waveform,
    write_clips,
    write_corpus,
    write_table,
)
from speech_data import join

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
FORMS = ("csv", "jsonl", "parquet")


def test_column_options(tmp_path):
    write_clips(tmp_path / "clips")
    table = [{"wav": f"clips/{r['file_name']}", "said": r["text"], "mood": r["emotion"]} for r in rows()]
    manifest = write_table(tmp_path / "all.jsonl", table)
    assert_is_the_corpus(read(manifest, audio_column="wav", text_column="said", label_column="mood"))


def test_other_rates_and_channels_become_16_khz_mono(tmp_path):
    time = np.arange(8000) / 8000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    soundfile.write(tmp_path / "slow.wav", np.stack([tone, tone], axis=1), 8000, subtype="FLOAT")
    manifest = write_table(tmp_path / "all.csv", [{"audio": "slow.wav", "text": "go"}])
    clip = read(manifest, label=False)[0]["audio"]
    assert clip.shape == (16000,)
    assert np.abs(np.fft.rfft(clip)).argmax() == 440  # Hz, since the clip lasts 1 s


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("emotion", ["calm", "noisy"]), ("loud", [0, 1]), ("valence", [1.5, -0.9]),
        ("loud, high", [[0.0, 0.0], [1.0, 0.0]]), ("valence,arousal", [[1.5, -0.7], [-0.9, -0.45]]),
    ],
)  # fmt: skip
def test_labels_are_classes_or_numbers(tmp_path, column, expected):
    dataset = read(write_corpus(tmp_path, splits=("train",)), label_column=column)
    assert list(dataset["label"])[:2] == expected


def test_class_labels_and_booleans_become_names(tmp_path):
    files = write_clips(tmp_path)
    feature = datasets.ClassLabel(names=["calm", "noisy"])
    table = {"audio": [str(f) for f in files], "emotion": [i % 2 for i in range(8)], "up": [i > 3 for i in range(8)]}
    dataset = datasets.Dataset.from_dict(table).cast_column("emotion", feature)
    dataset.to_parquet(tmp_path / "train.parquet")
    assert list(read(tmp_path, text=False)["label"]) == ["calm", "noisy"] * 4
    assert list(read(tmp_path, text=False, label_column="up")["label"]) == ["False"] * 4 + ["True"] * 4
    dataset.map(lambda row, i: {"emotion": -1 if i == 5 else row["emotion"]}, with_indices=True).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match=r"Rows \[5\].*no label in 'emotion'"):
        read(tmp_path, text=False)


def test_words_that_look_like_missing_values_are_words(tmp_path):
    write_clips(tmp_path, 3)
    table = [
        {"audio": f"clip_{i}.wav", "text": word, "emotion": word} for i, word in enumerate(("null", "NA", "None"))
    ]
    assert list(read(write_table(tmp_path / "all.csv", table))["label"]) == ["null", "NA", "None"]


def test_numbers_for_transcripts_are_text(tmp_path):
    write_clips(tmp_path, 2)
    table = [{"audio": f"clip_{i}.wav", "text": 40 + i} for i in range(2)]
    assert list(read(write_table(tmp_path / "all.csv", table), label=False)["text"]) == ["40", "41"]


def damaged(tmp_path):
    """A corpus whose rows 1, 4 and 6 are cut short, missing and no audio at all."""
    corpus = write_corpus(tmp_path, splits=("train",))
    content = (corpus / "train" / "clip_1.wav").read_bytes()
    (corpus / "train" / "clip_1.wav").write_bytes(content[: len(content) // 2])
    (corpus / "train" / "clip_4.wav").unlink()
    (corpus / "train" / "clip_6.wav").write_text("not audio")
    return corpus


def test_damaged_and_missing_files_are_all_named_at_once(tmp_path):
    with pytest.raises(ValueError) as caught:
        read(damaged(tmp_path))
    message = str(caught.value)
    assert "3 of 8" in message and "--skip_bad_audio" in message
    for row, reason in ((1, "truncated"), (4, "no such file"), (6, "cannot be decoded")):
        assert f"row {row}: {tmp_path.resolve() / 'train' / f'clip_{row}.wav'}: " in message
        assert reason in message.split(f"row {row}:")[1].split("\n")[0]


def test_skip_bad_audio_goes_on_and_counts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = read(damaged(tmp_path), skip_bad_audio=True)
    assert "Skipped 3 of 8 recordings of split 'train'" in caplog.text
    assert list(dataset["text"]) == [row["text"] for i, row in enumerate(rows()) if i not in (1, 4, 6)]
    np.testing.assert_allclose(dataset[3]["audio"], waveform(5), atol=1e-4)


def test_a_repaired_file_is_read_again(tmp_path):
    """The cache of `datasets` does not look at the files that a row names."""
    corpus = damaged(tmp_path)
    with pytest.raises(ValueError, match="3 of 8"):
        read(corpus)
    write_clips(corpus / "train")
    assert_is_the_corpus(read(corpus))
    soundfile.write(corpus / "train" / "clip_0.wav", waveform(7), RATE)
    np.testing.assert_allclose(read(corpus)[0]["audio"], waveform(7), atol=1e-4)


def test_a_row_that_names_no_file(tmp_path):
    write_clips(tmp_path, 2)
    manifest = write_table(
        tmp_path / "all.jsonl", [{"audio": "clip_0.wav", "text": "go"}, {"audio": None, "text": "go"}]
    )
    with pytest.raises(ValueError, match="row 1: names no file in 'audio'"):
        read(manifest, label=False)


@pytest.mark.parametrize(("column", "what"), [("text", "transcript"), ("emotion", "label"), ("valence", "label")])
@pytest.mark.parametrize("form", FORMS)
def test_missing_values_are_told_by_row(tmp_path, form, column, what):
    write_clips(tmp_path / "train")
    table = rows()
    for i in (2, 5):
        table[i][column] = None
    if column == "text":
        table[7][column] = "  "
    write_table(tmp_path / "train" / f"metadata.{form}", table)
    expected = "2, 5, 7" if column == "text" else "2, 5"
    with pytest.raises(ValueError, match=rf"Rows \[{expected}\] of split 'train' have no {what} in '{column}'"):
        read(tmp_path, label_column=column if what == "label" else "emotion")


def test_names_in_several_label_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Column 'emotion' of split 'train' holds str.*numbers"):
        read(write_corpus(tmp_path, splits=("train",)), label_column="loud,emotion")


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'transcript'; it has \[.*'text', 'emotion'.*--text_column"):
        read(write_corpus(tmp_path, splits=("train",)), text_column="transcript")


def test_labels_of_several_kinds_are_refused(tmp_path):
    """JSON knows no columns: one label may be a name and the next a number."""
    write_clips(tmp_path, 2)
    lines = [{"audio": f"clip_{i}.wav", "text": "go", "emotion": label} for i, label in enumerate(["calm", 0])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="Column 'emotion' of split 'train' mixes int and str.*all as numbers"):
        read(tmp_path)


def test_splits_join_with_their_rows_numbered_anew(tmp_path):
    """Augmentation is drawn by the number of a row: a split that stands twice would sound the same both times."""
    first, second = (read(write_corpus(tmp_path / name, splits=("train",)), label=False) for name in ("a", "b"))
    joined = join([first, second.remove_columns("file_name"), first])
    assert list(joined["row"]) == list(range(3 * len(first)))
    assert list(joined["text"]) == 3 * list(first["text"])
    assert "file_name" not in joined.column_names
    assert isinstance(joined[0]["audio"], np.ndarray) and joined[0]["audio"].dtype == np.float32
    assert np.array_equal(joined[-1]["audio"], first[-1]["audio"])
    assert join([first]) is first
