"""`"audio-text-classification"`: utterances as files, samples, texts and data sets; texts scored against a clip."""

import doctest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from pipeline_helpers import TEXTS, named, same
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import processing.pipeline_calm
from modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel
from processing import (
    AudioError,
    AudioTextClassificationPipeline,
    CalmFeatureExtractor,
    CalmProcessor,
    load_audio,
)

TASK = "audio-text-classification"


@pytest.fixture
def classifier(saved):
    """The pipeline of a classifier of three classes, loaded from its folder."""
    return pipeline(TASK, model=saved()[1])


def utterances(clips) -> list[dict]:
    """Both modalities, either alone, and another length of each."""
    return [
        {"audio": clips[0], "text": TEXTS[0]}, {"audio": clips[1]}, {"text": TEXTS[1], "audio": None},
        {"text": TEXTS[2]}, {"audio": clips[2], "text": TEXTS[3]},
    ]  # fmt: skip


# Classification of utterances.


def test_an_utterance_is_classified_as_by_the_model(saved, processor, clips):
    """The pipeline adds reading and ranking, and no number of its own; a missing modality leaves no trace."""
    model, folder = saved()
    pipe = pipeline(TASK, model=folder)
    assert type(pipe) is AudioTextClassificationPipeline and type(pipe.model) is CalmForSequenceClassification
    for given in ({"audio": clips[0], "text": TEXTS[0]}, {"audio": clips[0]}, {"text": TEXTS[0]}):
        rate = {"sampling_rate": 16000} if "audio" in given else {}
        scores = model(**processor(**given, **rate, return_tensors="pt")).logits[0].softmax(-1)
        same(pipe(given, top_k=None), named(scores))
        assert pipe(given) == pipe(given, top_k=1)[0] == max(pipe(given, top_k=None), key=lambda x: x["score"])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_of_every_kind_give_what_single_utterances_give(classifier, clips, batch_size):
    """Rows that lack one modality, and rows of other lengths, share a batch; lists, generators and data sets agree."""
    items = utterances(clips)
    single = [classifier(item, top_k=None) for item in items]
    rows = Dataset.from_list([{"audio": None, "text": None, "speaker": "a", **item} for item in items])
    streams = (items, tuple(items), (item for item in items), rows, rows.to_iterable_dataset())
    for stream in streams:
        answers = classifier(stream, top_k=None, batch_size=batch_size)
        assert isinstance(answers, list) == isinstance(stream, (list, tuple))
        for answer, alone in zip(answers, single, strict=True):
            same(answer, alone)
    assert classifier([]) == list(classifier(item for item in [])) == []


def test_audio_comes_in_every_form(classifier, noise, tmp_path):
    """A file, its bytes, its samples with their rate: one signal, one result, whoever resampled it."""
    samples = noise(2.0)
    soundfile.write(tmp_path / "clip.wav", samples, 44100, subtype="FLOAT")
    expected = classifier({"audio": load_audio(tmp_path / "clip.wav")}, top_k=None)
    content = (tmp_path / "clip.wav").read_bytes()
    for audio in (
        str(tmp_path / "clip.wav"), tmp_path / "clip.wav", content, {"bytes": content, "path": None},
        {"array": samples, "sampling_rate": 44100}, {"raw": samples, "sampling_rate": 44100},
    ):  # fmt: skip
        same(classifier({"audio": audio}, top_k=None), expected)
    for kind in (np.asarray, torch.from_numpy, np.ndarray.tolist):
        same(classifier({"audio": kind(samples), "sampling_rate": 44100}, top_k=None), expected)
    same(classifier({"raw": samples, "sampling_rate": 44100}, top_k=None), expected)
    expected = classifier({"audio": samples, "sampling_rate": 16000}, top_k=None)
    same(classifier({"audio": samples}, top_k=None), expected)  # without a rate: the model's


def test_data_sets_of_files(classifier, noise, tmp_path):
    """Columns as `datasets` stores them, by row and by column."""
    for seed in range(3):
        soundfile.write(tmp_path / f"{seed}.flac", noise(0.4 + 0.2 * seed, seed), 8000)
    files = [str(tmp_path / f"{seed}.flac") for seed in range(3)]
    rows = Dataset.from_dict({"audio": files, "text": TEXTS[:3], "label": [0, 1, 2]})
    rows = rows.cast_column("audio", Audio(decode=False))
    expected = classifier([{"audio": file, "text": text} for file, text in zip(files, TEXTS, strict=False)])
    assert list(classifier(rows)) == expected
    alone = classifier([{"audio": file} for file in files])
    assert list(classifier(KeyDataset(rows, "audio"))) == alone
    assert list(classifier(rows.remove_columns("text"), num_workers=1)) == alone


def test_decoded_columns(classifier, noise, tmp_path):
    """With torchcodec `datasets` decodes by itself; the signal is the file's."""
    soundfile.write(tmp_path / "clip.wav", np.stack([noise(1.0), noise(1.0, 1)], 1), 8000, subtype="FLOAT")
    rows = Dataset.from_dict({"audio": [str(tmp_path / "clip.wav")]}).cast_column("audio", Audio())
    try:
        rows[0]["audio"].get_all_samples()
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec and FFmpeg's libraries are not there: {error}")
    (answer,) = classifier(rows, top_k=None)
    same(answer, classifier({"audio": str(tmp_path / "clip.wav")}, top_k=None))


class Decoder:
    """What torchcodec makes of a clip, which can be indexed."""

    def __init__(self, samples: np.ndarray):
        self.samples = torch.as_tensor(samples)[None]

    def get_all_samples(self):
        return SimpleNamespace(data=self.samples, sample_rate=16000)

    def __getitem__(self, key):
        return self.get_all_samples()


def test_a_decoder_is_an_utterance(classifier, clips):
    """An audio column of `datasets` alone, and one of its rows."""
    expected = classifier([{"audio": clip} for clip in clips[:2]])
    assert classifier([Decoder(clip) for clip in clips[:2]]) == expected
    assert classifier(Decoder(clips[0])) == expected[0]


@pytest.mark.parametrize(
    ("problem", "num_labels", "function"),
    [
        ("single_label_classification", 3, lambda logits: logits.softmax(-1)),
        ("multi_label_classification", 3, torch.sigmoid),
        ("regression", 3, lambda logits: logits),
        (None, 3, lambda logits: logits.softmax(-1)),
        (None, 1, lambda logits: logits),
    ],
)
def test_scores_follow_the_problem(saved, processor, problem, num_labels, function):
    """A valence of -0.3 must not come out as a probability, and labels that exclude each other must sum to 1."""
    model, folder = saved(problem_type=problem, num_labels=num_labels)
    logits = model(**processor(text=TEXTS[0], return_tensors="pt")).logits[0]
    pipe = pipeline(TASK, model=folder)
    answers = pipe({"text": TEXTS[0]}, top_k=None)
    same(answers, named(function(logits)))
    raw = pipe({"text": TEXTS[0]}, top_k=None, function_to_apply="none")
    same(raw, named(logits))


def test_options_at_the_start_hold_for_every_call(saved):
    pipe = pipeline(TASK, model=saved()[1], top_k=2, batch_size=2, local_files_only=True)
    assert [len(answers) for answers in pipe([{"text": text} for text in TEXTS])] == [2] * 4
    assert len(pipe({"text": "go"}, top_k=None)) == 3


# Texts scored against a clip.


@pytest.mark.parametrize("kind", [CalmForPreTraining, CalmModel, CalmForSequenceClassification])
def test_candidate_texts_are_scored_by_their_cosine(saved, processor, clips, kind):
    """No head takes part. The learned scale of a pretraining checkpoint survives the way through its folder."""
    model, folder = saved(kind)
    if kind is CalmForPreTraining:
        with torch.no_grad():
            model.logit_scale.fill_(1.5)
        model.save_pretrained(folder)
    base = getattr(model, "calm", model)
    inputs = processor(audio=clips, text=TEXTS, sampling_rate=16000, return_tensors="pt")
    output = base(**inputs)
    scale = np.exp(1.5 if kind is CalmForPreTraining else model.config.logit_scale_init_value)
    expected = (scale * output.audio_embeds @ output.text_embeds.T).softmax(-1)
    for pipe in (pipeline(TASK, model=folder), pipeline(TASK, model=model, processor=processor)):
        assert type(pipe.model) is kind
        answers = pipe([{"audio": clip, "text": "go"} for clip in clips], candidate_texts=TEXTS, batch_size=3)
        for row, ranking in zip(expected, answers, strict=True):
            same(ranking, named(row, TEXTS))
            assert ranking == sorted(ranking, key=lambda answer: -answer["score"])
        same(pipe({"audio": clips[0]}, candidate_texts=TEXTS, top_k=1), answers[0][:1])


def test_candidate_texts_can_be_read(saved, processor, clips, noise):
    """Word by word a clip tells texts apart that lie close together as wholes; one without room for any tells none."""
    model, _ = saved(CalmForPreTraining)
    model.config.transcript_loss_weight = 1.0
    pipe = pipeline(TASK, model=model, processor=processor)
    inputs = processor(audio=clips[0], sampling_rate=16000, return_tensors="pt")
    words = processor(text=TEXTS, return_tensors="pt")
    expected = model.score_transcripts(words["input_ids"], attention_mask=words["attention_mask"], **inputs)
    same(pipe({"audio": clips[0]}, candidate_texts=TEXTS, score_by="reading"), named(expected.softmax(-1)[0], TEXTS))
    reader = pipeline(TASK, model=model, processor=processor, score_by="reading")  # a default for every call
    same(reader({"audio": clips[0]}, candidate_texts=TEXTS), named(expected.softmax(-1)[0], TEXTS))
    short = pipe({"audio": noise(0.1)}, candidate_texts=["the cat sat", "a dog ran"], score_by="reading")
    assert [answer["score"] for answer in short] == [0.5, 0.5]
    model.config.transcript_loss_weight = 0.0
    with pytest.raises(ValueError, match="not trained to read"):
        pipe({"audio": clips[0]}, candidate_texts=TEXTS, score_by="reading")
    pipe = pipeline(TASK, model=saved(CalmModel)[0], processor=processor)
    with pytest.raises(ValueError, match="`CalmModel` cannot read"):
        pipe({"audio": clips[0]}, candidate_texts=TEXTS, score_by="reading")


@pytest.mark.parametrize(("seen", "other"), [("audio", "text"), ("text", "audio")])
def test_a_classifier_of_one_modality_leaves_the_other_out(saved, processor, clips, seen, other):
    """Words that it never saw would move its labels, and words alone would all get one and the same."""
    model, _ = saved()
    utterance = {"audio": clips[0], "text": TEXTS[0]}
    alone = pipeline(TASK, model=model, processor=processor)({seen: utterance[seen]})
    model.config.modalities = seen
    pipe = pipeline(TASK, model=model, processor=processor)
    same([pipe(utterance)], [alone])
    with pytest.raises(ValueError, match=f"Item 1: This classifier was trained on {seen} alone"):
        pipe([utterance, {other: utterance[other]}])
    assert len(pipe({"audio": clips[0]}, candidate_texts=TEXTS)) == len(TEXTS)


def test_half_weights_score_candidates_in_float32(saved, processor, clips):
    """At a scale of 100 bfloat16 has steps of 0.5, in which close texts tie."""
    model, _ = saved(CalmForPreTraining)
    pipe = pipeline(TASK, model=model.to(torch.bfloat16), processor=processor)
    inputs = processor(audio=clips[0], text=TEXTS[0], sampling_rate=16000, return_tensors="pt")
    texts = processor(text=TEXTS, return_tensors="pt")
    audio = model.calm.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    words = model.calm.get_text_features(**texts).pooler_output
    expected = (model.logit_scale.float().exp() * audio.float() @ words.float().T).softmax(-1)
    same(pipe({"audio": clips[0]}, candidate_texts=TEXTS), named(expected[0], TEXTS))


def test_a_long_recording_can_be_matched_but_not_classified(saved, noise):
    """The toy's language model has 48 positions, 3.8 s; the aligned space has no limit."""
    pipe = pipeline(TASK, model=saved()[1])
    assert len(pipe({"audio": noise(6.0)}, candidate_texts=TEXTS)) == 4
    with pytest.raises(ValueError, match="48 positions.*Cut the recording"):
        pipe({"audio": noise(6.0)})


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_long_recording_is_classified_in_chunks(saved, noise, batch_size):
    """Their logits are averaged, in batches that chunks of several utterances share."""
    model, folder = saved()
    pipe = pipeline(TASK, model=folder, batch_size=batch_size)
    long, short = noise(6.0), noise(1.0)
    chunks = [{"audio": chunk, "text": TEXTS[0]} for chunk in np.array_split(long, 3)]
    each = [
        [
            score["score"]
            for score in sorted(pipe(chunk, top_k=None, function_to_apply="none"), key=lambda score: score["label"])
        ]
        for chunk in chunks
    ]
    items = [{"audio": short}, {"audio": long, "text": TEXTS[0]}, {"text": TEXTS[1]}]
    found = pipe(items, chunk_length_s=2.0, top_k=None, function_to_apply="none")
    same(found[1], named(torch.tensor(each).mean(0)))
    for place in (0, 2):
        same(found[place], pipe(items[place], top_k=None, function_to_apply="none"))
    asked = {"candidate_texts": TEXTS}
    same(pipe({"audio": long}, chunk_length_s=2.0, **asked), pipe({"audio": long}, **asked))


# Models.


@pytest.mark.parametrize("kind", [CalmForPreTraining, CalmModel])
def test_a_folder_without_a_classifier_is_not_given_one(saved, clips, kind):
    """Random scores look like scores."""
    pipe = pipeline(TASK, model=saved(kind)[1])
    with pytest.raises(ValueError, match=f"`{kind.__name__}` has no classifier.*finetune.*candidate_texts"):
        pipe({"audio": clips[0]})


def test_a_new_classifier_is_refused(saved, processor, clips):
    """However it came about: built from a configuration, or put on a pretraining checkpoint."""
    model, folder = saved(CalmForPreTraining)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    for untrained in (loaded, CalmForSequenceClassification(model.config)):
        pipe = AudioTextClassificationPipeline(model=untrained, processor=processor)
        with pytest.raises(ValueError, match="never trained"):
            pipe({"audio": clips[0]})
        assert len(pipe({"audio": clips[0]}, candidate_texts=TEXTS)) == 4


def test_a_model_fresh_from_training_does_not_draw(saved, processor, clips):
    """Dropout that is left on would give another answer each time."""
    pipe = AudioTextClassificationPipeline(model=saved()[0].train(), processor=processor)
    assert pipe({"audio": clips[0]}) == pipe({"audio": clips[0]})


def test_models_and_processors_that_do_not_fit(saved, processor):
    """Each is told at the start, before any audio is read."""
    model, folder = saved()
    with pytest.raises(ValueError, match="needs `processor=`"):
        AudioTextClassificationPipeline(model=model)
    with pytest.raises(ValueError, match="it got `CalmAudioModel`"):
        AudioTextClassificationPipeline(model=model.calm.audio_model, processor=processor)
    other = CalmProcessor(CalmFeatureExtractor(), processor.tokenizer)
    with pytest.raises(ValueError, match="other patches: `num_mel_bins` 80 and 8"):
        AudioTextClassificationPipeline(model=model, processor=other)
    (Path(folder) / "processor_config.json").unlink()
    with pytest.raises(OSError, match=r"processor_config\.json"):
        pipeline(TASK, model=folder)


# Faults of a call.


@pytest.mark.parametrize(
    ("utterance", "error", "message"),
    [
        ({}, ValueError, "neither audio nor text"),
        ({"adio": "a.wav", "text": None}, ValueError, r"only \['adio', 'text'\]. Give"),
        ("speech.wav", TypeError, "is a dict, not str. Give"),
        (Path("speech.wav"), TypeError, "is a dict, not PosixPath. Give"),
        (np.zeros(9), TypeError, "is a dict, not ndarray. Give"),
        ({"text": ["go", "stop"]}, TypeError, "`text` must be a str, not list"),
        ({"audio": 3}, TypeError, "got int"),
        ({"audio": "nowhere.wav"}, AudioError, "no such file"),
        ({"audio": b"no audio"}, AudioError, "cannot be decoded"),
        ({"audio": {"array": np.zeros(9)}}, ValueError, "need their rate"),
        ({"audio": {"array": np.zeros(9), "sampling_rate": 0}}, ValueError, "need their rate"),
        ({"audio": np.zeros((9, 2)), "sampling_rate": 8000}, ValueError, "have channels"),
        ({"audio": np.zeros((9, 2))}, ValueError, "one axis"),
        ({"audio": np.zeros(0)}, ValueError, "empty"),
    ],
)
def test_an_utterance_that_cannot_be_used(classifier, utterance, error, message):
    """The error says what to give; among several utterances, and from a generator, it says which one."""
    with pytest.raises(error, match=message):
        classifier(utterance)
    with pytest.raises(error, match=f"(?s)^Item 1: .*{message}"):
        classifier([{"text": "go"}, utterance])
    with pytest.raises(error, match=f"(?s)^Item 1: .*{message}"):
        list(classifier(item for item in ({"text": "go"}, utterance)))


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0}, {"top_k": "all"}, {"function_to_apply": "tanh"}, {"score_by": "ear"}, {"chunk_length_s": 0}],
)
def test_options_that_mean_nothing(classifier, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        classifier({"text": "go"}, **options)


def test_faults_of_zero_shot_classification(classifier, clips):
    for candidate_texts in ([], "the cat", ["the cat", " "], ["the cat", None]):
        with pytest.raises(ValueError, match="must be a list of texts"):
            classifier({"audio": clips[0]}, candidate_texts=candidate_texts)
    with pytest.raises(ValueError, match=r"\['кот'\] hold no word that the model's tokenizer knows"):
        classifier({"audio": clips[0]}, candidate_texts=["the cat", "кот"])
    with pytest.raises(ValueError, match="Item 1: .*scored against audio"):
        classifier([{"audio": clips[0]}, {"text": "the cat"}], candidate_texts=TEXTS)
    with pytest.raises(TypeError, match="candidate_labels"):
        classifier({"audio": clips[0]}, candidate_labels=TEXTS)


def test_the_example_of_the_docstring(saved, processor):
    globs = {"model": saved()[0], "processor": processor}
    assert doctest.testmod(processing.pipeline_calm, extraglobs=globs).failed == 0
