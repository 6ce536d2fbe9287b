"""What a user of retrieve.py relies on: the right clip, the right place, an index that is neither stale nor slow."""

import os
import shutil

import numpy as np
import pytest
import recording_index
import retrieve
import soundfile
import torch
from recording_index import Recording
from safetensors import safe_open
from torch.nn.functional import normalize

from modeling_calm import CalmForPreTraining

RATE = 16000
HERTZ = {"low": 200, "middle": 900, "high": 3000}


@pytest.fixture
def checkpoint(tmp_path, config, processor):
    """A toy run of pretrain.py."""
    CalmForPreTraining(config).save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def recordings(tmp_path, tone):
    """Three seconds in three files, one of them in a subfolder."""
    folder = tmp_path / "recordings"
    (folder / "sub").mkdir(parents=True)
    for name, hertz in HERTZ.items():
        file = folder / ("sub" if name == "high" else "") / f"{name}.wav"
        soundfile.write(file, chirp(tone, hertz, 1.0), RATE, subtype="FLOAT")
    return folder


def chirp(tone, hertz, seconds):
    """A tone that stops and goes, which survives the normalisation of each mel bin."""
    clip = tone(hertz, seconds) + 0.3 * tone(2.3 * hertz, seconds)
    return clip * (np.arange(len(clip)) // (hertz * 2) % 2)


@pytest.fixture
def find(tmp_path, checkpoint, recordings):
    """`find(option, value, ...)`: retrieve.py on the toys."""

    def run(*options, folder=recordings, model=checkpoint):
        index = ["--index", str(tmp_path / "index")]
        return retrieve.main(["--model", str(model), "--recordings", str(folder), *index, *map(str, options)])

    return run


@pytest.fixture
def embedded(monkeypatch):
    """The names of the files that were embedded, in order."""
    names, embed = [], recording_index.embed_recording

    def spy(model, processor, file, passage_s):
        names.append(file.name)
        return embed(model, processor, file, passage_s)

    monkeypatch.setattr(recording_index, "embed_recording", spy)
    return names


def test_a_recording_finds_itself(find, recordings, capsys):
    """Score 1, first, and the other clips behind it; otherwise index and query were embedded differently."""
    matches = find("--query_audio", recordings / "sub" / "high.wav")
    assert [match.file for match in matches][0] == "sub/high.wav" and len(matches) == 3
    assert matches[0].score == pytest.approx(1, abs=1e-5) and matches[1].score < 0.999
    assert all(first.score >= second.score for first, second in zip(matches, matches[1:], strict=False))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["rank", "score", "start", "-", "end", "file"] and "sub/high.wav" in table[1]
    assert len(find("--query_audio", recordings / "low.wav", "--top_k", 1)) == 1


def test_a_query_finds_its_place_in_a_long_recording(find, tmp_path, tone):
    """The passage answers, not the file, and its span counts from the start of the file."""
    folder = tmp_path / "long"
    folder.mkdir()
    pieces = [chirp(tone, hertz, 2.0) for hertz in (200, 350, 500, 900, 1400, 2000, 3000)]
    soundfile.write(folder / "long.wav", np.concatenate(pieces), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "query.wav", pieces[4], RATE, subtype="FLOAT")
    match = find("--query_audio", tmp_path / "query.wav", "--passage_s", 2, folder=folder)[0]
    assert match.score == pytest.approx(1, abs=1e-5)
    assert 8 <= match.start < match.end <= 10


def test_text_finds_the_tokens_that_say_it():
    """Acoustic tokens laid on the words' embedding are the span; the passage with more of them is first."""
    query = normalize(torch.randn(24), dim=-1)
    other = torch.randn(6, 24)
    other -= (other @ query)[:, None] * query  # says nothing of the query
    tokens = other.clone()
    tokens[2:5] = query
    passages = [other, tokens]
    embeds = normalize(torch.stack([passage.mean(0) for passage in passages]), dim=-1)
    spans = torch.tensor([[0.0, 3.0], [3.0, 6.0]], dtype=torch.float64)
    found = retrieve.search({"a.wav": Recording([0, 0], spans, embeds, passages)}, query, 0.5, top_k=2)
    assert (found[0].file, found[0].start, found[0].end) == ("a.wav", 4.0, 5.5)
    assert found[1].score == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("similarities", "span"),
    [([0.8, 0.0, 0.6, 0.9, 0.1], (2, 4)), ([0.5], (0, 1)), ([0.5, 0.5, 0.5], (0, 1)), ([0.0, 0.9, 0.8], (1, 3))],
)
def test_the_span_is_the_run_around_the_best_token(similarities, span):
    """Another run above the mean does not belong to it, and the best token always does."""
    assert retrieve.best_span(torch.tensor(similarities)) == span


def test_text_queries_score_every_passage(find):
    """A word of the vocabulary gives cosines; the order of its passages is that of the index."""
    matches = find("--query", "the cat", "--passage_s", 0.5, "--top_k", 10)
    assert len(matches) == 6  # two passages in each of three files
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True) and -1 <= scores[-1] < scores[0] <= 1


def test_the_index_reads_only_what_changed(find, recordings, embedded, tmp_path):
    """A stale index answers with what is no longer there; a slow one reads an archive for every query."""
    query = ("--query", "cat")
    first = find(*query)
    assert sorted(embedded) == ["high.wav", "low.wav", "middle.wav"]
    embedded.clear()
    assert find(*query) == first and embedded == []

    shutil.copy(recordings / "low.wav", recordings / "new.wav")
    os.utime(recordings / "middle.wav", (0, 0))
    (recordings / "sub" / "high.wav").unlink()
    assert sorted(match.file for match in find(*query)) == ["low.wav", "middle.wav", "new.wav"]
    assert sorted(embedded) == ["middle.wav", "new.wav"]
    with safe_open(tmp_path / "index" / retrieve.INDEX_FILE, "pt") as stored:
        assert "high.wav" not in stored.metadata()["calm_index"]


def test_other_weights_or_passages_make_the_index_anew(find, config, checkpoint, embedded):
    """Embeddings of two models have nothing to do with each other."""
    find("--query", "cat")
    CalmForPreTraining(config).save_pretrained(checkpoint)
    find("--query", "cat")
    find("--query", "cat", "--passage_s", 0.5)
    assert len(embedded) == 9


def test_an_interrupted_run_keeps_what_it_indexed(find, embedded, monkeypatch):
    """An archive of days would else start at zero whenever it is stopped."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        embed = recording_index.embed_recording
        patch.setattr(
            recording_index, "embed_recording",
            lambda *a: (_ for _ in ()).throw(KeyboardInterrupt) if "high" in str(a[2]) else embed(*a),
        )  # fmt: skip
        find("--query", "cat")
    embedded.clear()
    find("--query", "cat")
    assert embedded == ["high.wav"]


def test_a_killed_run_keeps_all_but_the_last_minutes(find, embedded, monkeypatch, tmp_path):
    """Nothing of the process runs after that, not even the end of a `finally`."""
    monkeypatch.setattr(recording_index, "SAVED_EVERY_S", 0.0)
    kept, save = [], recording_index.save_index

    def spy(file, recordings, settings):
        save(file, recordings, settings)
        kept.append(list(recording_index.load_index(file)[0]))

    monkeypatch.setattr(recording_index, "save_index", spy)
    find("--query", "cat")
    assert kept[:2] == [["low.wav"], ["low.wav", "middle.wav"]]


def test_an_interrupted_refresh_keeps_the_index(find, recordings, embedded, monkeypatch):
    """The hours that went into the other files must not be lost with the first that is read again."""
    find("--query", "cat")
    os.utime(recordings / "low.wav", (0, 0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recording_index, "embed_recording", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        find("--query", "cat")
    embedded.clear()
    assert len(find("--query", "cat")) == 3
    assert embedded == ["low.wav"]


def test_unreadable_files_are_reported_together_and_skipped(find, recordings, caplog):
    """One damaged file must not cost the index of all others."""
    for name in ("a.wav", "z.flac"):
        (recordings / name).write_bytes(b"no audio")
    assert len(find("--query", "cat")) == 3
    (report,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "skipped: 2" in report and "a.wav" in report and "z.flac" in report


def test_errors_say_what_to_do(find, checkpoint, recordings, tmp_path, config):
    """Each of these is a first try of somebody."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder that holds recordings"):
        find("--query", "cat", folder=tmp_path / "empty")
    for query in ("", "  ", "äöü"):
        with pytest.raises(ValueError, match="no word that the model's tokenizer knows"):
            find("--query", query)
    with pytest.raises(ValueError, match="passage_s"):
        find("--query", "cat", "--passage_s", 0)
    with pytest.raises(ValueError, match="top_k"):
        find("--query", "cat", "--top_k", 0)
    CalmForPreTraining(config).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no processor"):
        find("--query", "cat", model=tmp_path / "bare")
    (tmp_path / "index").mkdir(exist_ok=True)
    (tmp_path / "index" / retrieve.INDEX_FILE).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no index"):
        find("--query", "cat")
