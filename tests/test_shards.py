"""Shards: which files are a split's, how many rows they hold, any part of them, and what is refused of a tar."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_helpers import TEXTS, read, rows, write_corpus
from shards import Block, column_names, count_rows, find_shards, pick, read_rows
from stream_helpers import flac, write_parquet, write_tar, write_tars

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"], ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["train/a.parquet"],
        ["data/train-00000-of-00001.parquet"], ["data/train/x/0.parquet"], ["train-000000.tar", "train-000001.tar"],
    ],
)  # fmt: skip
def test_the_shards_of_a_split(tmp_path, names):
    others = ["train-clean.parquet", "test.parquet", "validation-00000-of-00001.parquet", "notes.txt", "training.tar"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_shards(str(tmp_path), "train") == [str(tmp_path / name) for name in names]
    assert find_shards(str(tmp_path / names[0]), "train") == [str(tmp_path / names[0])]


def test_shards_by_a_pattern_are_the_split_train(tmp_path):
    files = [write_tar(tmp_path / f"part-{i}.tar", {"a.txt": b"go"}) for i in range(3)]
    assert find_shards(str(tmp_path / "part-[01].tar"), "train") == [str(file) for file in files[:2]]
    with pytest.raises(ValueError, match="is the split 'train' alone; for 'test' give a folder"):
        find_shards(str(tmp_path / "part-*.tar"), "test")


def test_what_cannot_be_streamed_is_told_with_the_remedy(tmp_path, own_cache):
    corpus = str(write_corpus(tmp_path / "corpus", 2))
    with pytest.raises(ValueError, match="neither parquet nor tar shards of the split 'train'.*prepare_data.py"):
        find_shards(corpus, "train")
    with pytest.raises(ValueError, match="whole splits.*'train\\[:50%\\]' is a part"):
        find_shards(corpus, "train[:50%]")
    with pytest.raises(ValueError, match="no file, folder or pattern.*as a data set of the Hub it does not load"):
        find_shards("no/such", "train")
    write_parquet(tmp_path / "both", (1,))
    write_tars(tmp_path / "both", (1,))
    with pytest.raises(ValueError, match="parquet and tar shards together"):
        find_shards(str(tmp_path / "both"), "train")


@pytest.mark.parametrize("write", [write_parquet, write_tars])
def test_any_part_of_a_shard_is_read_in_order(tmp_path, write):
    files = find_shards(str(write(tmp_path, (23, 4))), "train")
    blocks = count_rows(files)
    assert [(block.file, sum(b.rows for b in blocks if b.file == block.file)) for block in blocks] == [
        (files[0], 23), (files[1], 4),
    ]  # fmt: skip
    text = "text" if write is write_parquet else "txt"
    for start, stop in ((0, 23), (0, 1), (4, 6), (5, 5), (19, 23), (22, 23)):
        found = list(read_rows(files[0], start, stop, ["audio", "text"]))
        assert [row[text] for row in found] == [TEXTS[i % 8] for i in range(start, stop)]
    with pytest.raises(ValueError, match="ends after row 4, and had 5 rows or more"):
        list(read_rows(files[1], 0, 5, ["audio", "text"]))


def test_a_block_is_a_run_of_row_groups(tmp_path):
    """Row groups are what parquet can be read by; a block for each small one would open a file for a few rows."""
    pq.write_table(pa.table({"text": ["go"] * 700}), tmp_path / "train.parquet", row_group_size=50)
    file = str(tmp_path / "train.parquet")
    assert count_rows([file]) == [Block(file, start, min(150, 700 - start)) for start in range(0, 700, 150)]


def test_columns_and_fields_of_structs(tmp_path):
    content = json.dumps({"text": "red cat", "speaker": {"id": "s1"}}).encode()
    tar = write_tar(tmp_path / "train.tar", {"0.flac": flac(0), "0.json": content})
    assert {"flac", "json"} <= set(column_names(str(tar)))
    (row,) = read_rows(str(tar), 0, 1, [])
    assert row["flac"] == flac(0)
    assert pick(row, "json.text") == "red cat" and pick(row, "json.speaker.id") == "s1"
    assert pick(row, "json.mood") is None and pick(row, "txt") is None
    # A split of few clips is read the same way.
    (clip,) = read(tar, label=False, audio_column="flac", text_column="json.text")
    assert clip["text"] == "red cat" and len(clip["audio"]) == 6400


def test_a_sharded_split_is_read_at_once_too(tmp_path):
    write_parquet(tmp_path, (5, 3))
    assert list(read(tmp_path, label=False)["text"]) == [row["text"] for row in rows()]
    write_tars(tmp_path / "tars", (5, 3))
    dataset = read(tmp_path / "tars", label=False, audio_column="flac", text_column="txt")
    assert list(dataset["text"]) == [row["text"] for row in rows()]


@pytest.mark.parametrize("name", ["../clip.flac", "/etc/clip.flac", "a/../../clip.flac"])
def test_a_tar_whose_members_lead_out_of_it_is_refused(tmp_path, name):
    tar = write_tar(tmp_path / "train.tar", {"0.flac": b"", "0.txt": b"go", name: b""})
    with pytest.raises(ValueError, match=f"train.tar' is refused: its member '{name}' leads out of the archive"):
        count_rows([str(tar)])
    with pytest.raises(ValueError, match="is refused"):
        read(tar, label=False, audio_column="flac", text_column="txt")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_links_or_devices_is_refused(tmp_path, kind):
    """`datasets` leaves them out without a word, and with them the clip or the transcript of a sample."""
    tar = write_tar(tmp_path / "train.tar", {"0.flac": b"", "0.txt": b"go"})
    member = tarfile.TarInfo("1.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tar, "a") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match="'1.flac' is a link or a device.*tar --dereference"):
        count_rows([str(tar)])


@pytest.mark.parametrize("kind", ["1.txt.gz", tarfile.GNUTYPE_SPARSE])
def test_a_tar_with_members_that_grow_is_refused(tmp_path, kind):
    """A kilobyte of either can claim terabytes, which `datasets` would read whole."""
    tar = write_tar(tmp_path / "train.tar", {"0.flac": b"", "0.txt": b"go"})
    member = tarfile.TarInfo("1.txt.gz" if isinstance(kind, str) else "1.txt")
    member.type = tarfile.REGTYPE if isinstance(kind, str) else kind
    with tarfile.open(tar, "a", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match="'1.txt.*is compressed or sparse"):
        count_rows([str(tar)])


def test_a_tar_whose_first_samples_differ_is_refused(tmp_path):
    """`datasets` takes the fields of the first few for those of all, and would stop in the midst of training."""
    tar = write_tar(tmp_path / "train.tar", {"0.flac": b"", "0.txt": b"go", "1.flac": b""})
    with pytest.raises(ValueError, match=r"first 2 samples has other fields.*\['flac', 'txt'\]"):
        count_rows([str(tar)])


def test_a_text_that_is_no_text_names_its_shard(tmp_path):
    tar = write_tar(tmp_path / "train.tar", {"0.flac": b"", "0.txt": "grün".encode("latin-1")})
    with pytest.raises(ValueError, match="train.tar' cannot be read"):
        list(read_rows(str(tar), 0, 1, ["flac", "txt"]))


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_damaged_shard_is_named(tmp_path, ending):
    write_tars(tmp_path, (3,)) if ending == ".tar" else write_parquet(tmp_path, (3,))
    (file,) = tmp_path.glob("*")
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(ValueError, match=f"'{file}' cannot be read as"):
        count_rows([str(file)])
