"""Every form of a data set gives the same rows; what is not there is told with what is."""

import json
import shutil

import datasets
import numpy as np
import pytest
from example_helpers import (
    assert_is_the_corpus,
    read,
    rows,
    waveform,
    write_clips,
    write_corpus,
    write_table,
)
from speech_data import DataArguments
from speech_sources import load_split

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
FORMS = ("csv", "jsonl", "parquet")


def with_path(table: list[dict], folder: str = "clips/", column: str = "audio") -> list[dict]:
    return [{column: folder + row["file_name"], **row} for row in table]


@pytest.mark.parametrize("form", FORMS)
def test_an_audiofolder_with_metadata(tmp_path, form):
    write_clips(tmp_path / "train")
    write_table(tmp_path / "train" / f"metadata.{form}", rows())
    dataset = read(tmp_path)
    assert_is_the_corpus(dataset)
    assert dataset[3]["speaker"] == "s1" and dataset[3]["file_name"] == "clip_3.wav"


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_of_manifests_named_by_split(tmp_path, form):
    write_clips(tmp_path / "clips")
    write_table(tmp_path / f"train.{form}", with_path(rows()))
    write_table(tmp_path / f"dev-clean.{form}", with_path(rows()[:2]))
    (tmp_path / "README.md").write_text("# A corpus")
    assert_is_the_corpus(read(tmp_path))
    assert_is_the_corpus(read(tmp_path, "dev-clean"), 2)


@pytest.mark.parametrize("form", FORMS)
def test_one_manifest_is_the_split_train(tmp_path, form):
    """Were it every split, a model would be tested on what it was trained on."""
    write_clips(tmp_path / "clips")
    manifest = write_table(tmp_path / f"all.{form}", with_path(rows()))
    assert_is_the_corpus(read(manifest))
    with pytest.raises(ValueError, match=r"one file.*no 'validation'.*--validation_split 'train\[80%:90%\]'"):
        read(manifest, "validation")


@pytest.mark.parametrize("kind", ["struct", "audio feature"])
def test_parquet_with_the_bytes_of_the_audio(tmp_path, kind):
    files = write_clips(tmp_path / "clips")
    table = [
        {**row, "audio": {"bytes": file.read_bytes(), "path": file.name}}
        for row, file in zip(rows(), files, strict=True)
    ]
    dataset = datasets.Dataset.from_list(table)
    if kind == "audio feature":
        dataset = dataset.cast_column("audio", datasets.Audio(decode=False)).cast_column("audio", datasets.Audio())
    dataset.to_parquet(tmp_path / "corpus" / "train.parquet")
    assert_is_the_corpus(read(tmp_path / "corpus"))


def test_class_folders_without_metadata(tmp_path):
    for file, row in zip(write_clips(tmp_path / "clips"), rows(), strict=True):
        target = tmp_path / "corpus" / "train" / row["emotion"] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    dataset = read(tmp_path / "corpus", text=False)
    assert list(dataset["label"]) == ["calm"] * 4 + ["noisy"] * 4
    np.testing.assert_allclose(dataset[4]["audio"], waveform(1), atol=1e-4)
    assert len(read(tmp_path / "corpus", "train[:50%]", text=False)) == 4
    with pytest.raises(ValueError, match=r"no column 'text'.*'audio', 'emotion'.*--text_column"):
        read(tmp_path / "corpus")


def test_folders_within_a_class_folder_are_no_classes(tmp_path):
    """Clips sorted by speaker within a class would be labelled by their speakers."""
    for number, file in enumerate(write_clips(tmp_path / "clips")):
        target = tmp_path / "corpus" / "train" / ("calm", "noisy")[number % 2] / f"speaker{number % 3}" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert sorted(set(read(tmp_path / "corpus", text=False)["label"])) == ["calm", "noisy"]


def test_clips_without_class_folders_have_no_label(tmp_path):
    write_clips(tmp_path / "train")
    assert len(read(tmp_path, text=False, label=False)) == 8
    with pytest.raises(ValueError, match="no column 'emotion'.*--label_column"):
        read(tmp_path, text=False)


@pytest.mark.parametrize("layout", ["shards", "table at the root"])
def test_a_folder_that_datasets_reads_is_read(tmp_path, layout):
    """A data set cloned from the Hub, and an audiofolder with one table for all splits."""
    files = write_clips(tmp_path / "corpus" / "train" if layout != "shards" else tmp_path / "clips")
    if layout == "shards":
        table = [
            {**row, "audio": {"bytes": f.read_bytes(), "path": f.name}} for row, f in zip(rows(), files, strict=True)
        ]
        dataset = datasets.Dataset.from_list(table).cast_column("audio", datasets.Audio(decode=False))
        dataset.to_parquet(tmp_path / "corpus" / "data" / "train-00000-of-00001.parquet")
    else:
        write_table(
            tmp_path / "corpus" / "metadata.csv", [{**r, "file_name": "train/" + r["file_name"]} for r in rows()]
        )
    assert_is_the_corpus(read(tmp_path / "corpus"))
    with pytest.raises(ValueError, match="validation.*train"):
        read(tmp_path / "corpus", "validation")


def test_splits_are_those_of_datasets(tmp_path):
    corpus = write_corpus(tmp_path, splits=("train", "test"))
    texts = [row["text"] for row in rows()]
    for split, expected in {
        "train[:50%]": texts[:4], "train[-2:]": texts[6:], "train[75%:]+test[:1]": texts[6:] + texts[:1],
        "train+test": texts * 2,
    }.items():  # fmt: skip
        assert list(read(corpus, split)["text"]) == expected
    with pytest.raises(ValueError, match="holds no recording"):
        read(corpus, "train[:0]")


@pytest.mark.parametrize("form", ["metadata", "manifests", "class folders"])
def test_a_split_that_is_not_there(tmp_path, form):
    for split in ("train", "test"):
        if form == "metadata":
            write_corpus(tmp_path, splits=(split,))
        elif form == "manifests":
            write_table(tmp_path / f"{split}.csv", with_path(rows(), ""))
        else:
            write_clips(tmp_path / split / "calm")
    (tmp_path / "README.md").write_text("# A corpus")
    with pytest.raises(ValueError, match=r"no split 'validation'.*It has \['test', 'train'\].*--train_split"):
        load_split(DataArguments(dataset=str(tmp_path)), "validation[:50%]")


def test_an_unknown_ending(tmp_path):
    (tmp_path / "all.tsv").write_text("audio\ttext\n")
    with pytest.raises(ValueError, match=r"all.tsv' is no manifest.*'.csv', '.json', '.jsonl', '.parquet'"):
        read(tmp_path / "all.tsv")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("all.csv", "audio,text\na.wav,one\nb.wav,two, three\n", "line 3"), ("all.csv", "", "No columns"),
        ("all.jsonl", '{"audio": "a.wav"\n', "JSON"), ("all.parquet", "no parquet", "Parquet"),
    ],
)  # fmt: skip
def test_a_broken_manifest_is_named(tmp_path, name, content, reason):
    """Not `DatasetGenerationError: An error occurred while generating the dataset`."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}' cannot be read as \w+: .*{reason}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["no/such", "nosuch", "./none", "runs/none.csv", "/nowhere/at/all"])
def test_a_data_set_that_does_not_exist(name):
    with pytest.raises(ValueError, match="is no file or folder, and as a data set of the Hub it does not load"):
        read(name)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="does not load"):
        read(tmp_path)


@pytest.mark.parametrize("way", ["..", "absolute", "link", "linked folder", "class folder"])
def test_data_cannot_have_files_outside_of_its_folder_read(tmp_path, way):
    """A manifest from elsewhere could have any recording of this machine embedded and published."""
    (private, *_) = write_clips(tmp_path / "private")
    corpus = tmp_path / "corpus"
    (corpus / "train" / "calm").mkdir(parents=True)
    named = {
        "..": "../private/clip_0.wav",
        "absolute": str(private),
        "link": "link.wav",
        "linked folder": "own/clip_0.wav",
    }
    (corpus / "link.wav").symlink_to(private)
    (corpus / "own").symlink_to(private.parent)
    if way == "class folder":
        (corpus / "train" / "calm" / "link.wav").symlink_to(private)
    else:
        write_table(corpus / "train.csv", [{"audio": named[way], "text": "go", "emotion": "calm"}])
    options = {"text": way != "class folder"}
    with pytest.raises(ValueError, match=r"names 1 files outside of .*corpus: '.*wav'.*--audio_root"):
        read(corpus, **options)
    assert len(read(corpus, audio_root=str(tmp_path / "private"), **options)) == 1


def test_links_within_the_folder_and_paths_from_a_split_into_another_are_followed(tmp_path):
    write_clips(tmp_path / "corpus" / "clips")
    (tmp_path / "corpus" / "train").mkdir()
    (tmp_path / "corpus" / "train" / "linked.wav").symlink_to(tmp_path / "corpus" / "clips" / "clip_1.wav")
    table = [{"file_name": name, "text": "go"} for name in ("../clips/clip_0.wav", "linked.wav")]
    write_table(tmp_path / "corpus" / "train" / "metadata.csv", table)
    assert len(read(tmp_path / "corpus", label=False)) == 2


def test_parquet_that_names_files_instead_of_holding_them(tmp_path):
    (private, *files) = write_clips(tmp_path / "private")
    held = [{"bytes": file.read_bytes(), "path": str(private)} for file in files]
    for audio, refused in ((held, False), ([*held, {"bytes": None, "path": str(private)}], True)):
        dataset = datasets.Dataset.from_list([{"audio": clip, "text": "go"} for clip in audio])
        dataset.to_parquet(tmp_path / "corpus" / "train-00000-of-00001.parquet")
        if refused:
            with pytest.raises(ValueError, match=r"names 1 files outside.*clip_0.wav"):
                read(tmp_path / "corpus", label=False)
        else:
            assert len(read(tmp_path / "corpus", label=False)) == 7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"audio": "FILE"}, {"audio": 5}], "Column 'audio' holds .*neither paths nor audio"),
        ([{"audio": {"path": "FILE"}}], "names 1 files outside"),
        ([{"audio": [0.1, 0.2]}], "Column 'audio' holds .*neither paths nor audio.*--audio_column"),
    ],
)
def test_no_form_of_the_audio_column_leads_out_of_the_folder(tmp_path, rows, message):
    """A column of now this and now that was opened without a look at where its paths lead."""
    (private,) = write_clips(tmp_path / "private", 1)
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps(row | {"text": "go"}).replace("FILE", str(private)) for row in rows]
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "corpus", label=False, skip_bad_audio=True)


def test_an_empty_jsonl_file_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match="train.jsonl' cannot be read as json: it is empty"):
        read(tmp_path)
