"""The collators: a batch is a function of its rows and a seed, and its masks are what the objectives say."""

import inspect
import io

import numpy as np
import pytest
import soundfile
import torch
from transformers import set_seed

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification
from processing import (
    DataCollatorForCalmClassification,
    DataCollatorForCalmPreTraining,
    SeededCollator,
    SpecAugment,
    WaveformAugmentation,
)

SENTENCE = "the cat sat on the mat under a red tree"


@pytest.fixture
def rows(noise) -> list[dict]:
    """Clips of 4, 6, 13 and 1 windows (80 ms each)."""
    texts = [SENTENCE, "a dog ran", "one two three four five six", "stop"]
    return [{"audio": noise(seconds), "text": text} for seconds, text in zip((0.3, 0.5, 1, 0.05), texts, strict=True)]


def windows(batch, processor) -> torch.Tensor:
    size = processor.feature_extractor.patches_per_token
    return batch["input_features_mask"].unflatten(1, (-1, size)).any(-1)


def test_the_keys_are_the_models_arguments(processor, config, rows):
    """A key that no argument takes would be swallowed by `**kwargs`, and an objective would go missing in silence."""
    batch = DataCollatorForCalmPreTraining(processor)(rows)
    assert set(batch) == {
        "input_ids", "attention_mask", "input_features", "input_features_mask", "labels", "mask_time_indices",
        "pair_indices",
    }  # fmt: skip
    assert set(batch) <= set(inspect.signature(CalmForPreTraining.forward).parameters)
    assert CalmForPreTraining(config).train()(**batch).loss.isfinite()
    labelled = [{**row, "label": index % 2} for index, row in enumerate(rows)]
    batch = DataCollatorForCalmClassification(processor)(labelled)
    assert set(batch) <= set(inspect.signature(CalmForSequenceClassification.forward).parameters)
    assert CalmForSequenceClassification(config).train()(**batch).loss.isfinite()


def test_dtypes_are_those_of_the_contract(processor, rows):
    batch = DataCollatorForCalmPreTraining(processor)(rows)
    expected = {
        "input_features": torch.float32, "input_features_mask": torch.long, "input_ids": torch.long,
        "attention_mask": torch.long, "labels": torch.long, "mask_time_indices": torch.bool,
        "pair_indices": torch.long,
    }  # fmt: skip
    assert {key: value.dtype for key, value in batch.items()} == expected


def test_a_seed_decides_every_mask(processor, rows):
    """A run that cannot be repeated cannot be compared; and epochs must not all draw the same masks."""
    collator = DataCollatorForCalmPreTraining(
        processor, waveform_augmentation=WaveformAugmentation(), spec_augment=SpecAugment(max_frequency_bins=2)
    )
    drawn = []
    for seed in (1, 1, 2):
        set_seed(seed)
        drawn.append(collator(rows))
    for key, value in drawn[0].items():
        assert torch.equal(drawn[1][key], value), key
    assert not torch.equal(drawn[2]["input_features"], drawn[0]["input_features"])
    assert not torch.equal(drawn[2]["mask_time_indices"], drawn[0]["mask_time_indices"])


def test_evaluation_draws_nothing(processor, rows):
    """With every mask off a batch is a function of its rows, so that two evaluations agree."""
    collator = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)
    set_seed(1)
    first = collator(rows)
    set_seed(2)
    second = collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "input_features", "input_features_mask"}
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_masked_words_are_devlins(processor, rows):
    """15 % of the words, of which 80 % become [MASK], 10 % another piece, 10 % stay; never special ones or padding."""
    collator = DataCollatorForCalmPreTraining(processor, mask_time_prob=0, draw_pairs=False)
    rows = [{"audio": rows[3]["audio"], "text": " ".join([SENTENCE] * 20)}] * 4
    plain = processor(text=[row["text"] for row in rows], return_tensors="pt")["input_ids"]
    words = plain > 4
    chosen = masked = kept = 0
    for _ in range(10):
        batch = collator(rows)
        places = batch["labels"] != -100
        assert not (places & ~words).any()
        assert torch.equal(batch["labels"][places], plain[places])
        assert torch.equal(batch["input_ids"][~places], plain[~places])
        chosen += places.sum().item()
        masked += (batch["input_ids"][places] == 4).sum().item()
        kept += (batch["input_ids"][places] == plain[places]).sum().item()
    assert chosen / (10 * words.sum().item()) == pytest.approx(0.15, abs=0.02)
    assert masked / chosen == pytest.approx(0.8, abs=0.04)
    assert kept / chosen == pytest.approx(0.1 + 0.1 / 30, abs=0.03)  # a random piece may be the same one


@pytest.mark.parametrize("length", [1, 2])
def test_masked_windows_are_real_and_about_as_many_as_asked(processor, rows, length):
    """A mask on padding predicts nothing; a share far from the asked one is another training recipe."""
    collator = DataCollatorForCalmPreTraining(
        processor, mlm_probability=0, mask_time_prob=0.3, mask_time_length=length, draw_pairs=False
    )
    share = []
    for _ in range(60):
        batch = collator(rows)
        real, masked = windows(batch, processor), batch["mask_time_indices"]
        assert masked.shape == real.shape
        assert not (masked & ~real).any()
        assert masked[real.sum(-1) >= length].any(-1).all()  # every clip long enough takes part
        share.append(masked[2].sum().item() / real[2].sum().item())
    # Spans of two may overlap, so they hide less than they would side by side.
    assert np.mean(share) == pytest.approx(0.3, abs=0.03 if length == 1 else 0.08)


def test_a_batch_too_short_for_a_span_still_has_its_key(processor, rows):
    """Without it this rank would leave out a term, and the others would wait for it for ever."""
    collator = DataCollatorForCalmPreTraining(processor, mask_time_length=5)
    batch = collator([rows[0], rows[3]])
    assert batch["mask_time_indices"].shape == (2, 4)
    assert not batch["mask_time_indices"].any()


def test_pairs_are_neighbours_inside_their_clip(processor, rows):
    """t and t + 1 must both be real; every pair of a clip must be drawn, and a clip of one window has none."""
    collator = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0)
    drawn = torch.stack([collator(rows)["pair_indices"] for _ in range(80)])
    assert windows(collator(rows), processor).sum(-1).tolist() == [4, 6, 13, 1]
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2], list(range(5)), list(range(12)), [-1]]


@pytest.mark.parametrize("column", ["audio", "text"])
def test_a_column_without_any_value_is_masked_and_not_left_out(processor, config, rows, column):
    """By chance the batch of a rank lacks a modality: left out there, it would keep the other ranks waiting."""
    collator = DataCollatorForCalmClassification(processor)
    model = CalmForSequenceClassification(config).eval()
    lacking = [{**row, column: None} for row in rows]
    alone = [{key: value for key, value in row.items() if key != column} for row in rows]
    batch = collator(lacking)
    assert batch.keys() == collator(rows).keys() > collator(alone).keys()
    torch.testing.assert_close(model(**batch).logits, model(**collator(alone)).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_row_without_transcript_is_refused_by_its_place(processor, rows, text):
    """A clip aligned with an empty text is pulled towards nothing; a `None` would be the word "none"."""
    rows[2]["text"] = text
    with pytest.raises(ValueError, match="Row 2 of the batch has no transcript"):
        DataCollatorForCalmPreTraining(processor)(rows)
    del rows[2]["text"]
    with pytest.raises(ValueError, match="Row 2 of the batch has no transcript"):
        DataCollatorForCalmPreTraining(processor)(rows)


def test_a_row_without_audio_is_refused_by_its_place(processor, rows):
    rows[1]["audio"] = None
    with pytest.raises(ValueError, match="Row 1 of the batch has no audio"):
        DataCollatorForCalmPreTraining(processor)(rows)


def test_rows_that_lack_a_modality_are_classified_by_the_other(processor, config, rows):
    """A row's logits are those it has alone: what stands in for the missing side must not be heard or read."""
    collator = DataCollatorForCalmClassification(processor)
    model = CalmForSequenceClassification(config).eval()
    sound, words, both = {"audio": rows[0]["audio"]}, {"text": rows[1]["text"]}, rows[2]
    batch = collator([sound, words, both])
    assert batch["attention_mask"].any(-1).tolist() == [False, True, True]
    assert batch["input_features_mask"].any(-1).tolist() == [True, False, True]
    together = model(**batch).logits
    for index, row in enumerate((sound, words, both)):
        alone = collator([row])
        assert ("input_features" in alone) is ("audio" in row)
        assert ("input_ids" in alone) is ("text" in row)
        torch.testing.assert_close(model(**alone).logits[0], together[index], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="Row 1 of the batch has neither audio nor text"):
        collator([both, {"label": 0}])


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [
        ([1, 0, 2, 1], torch.long, (4,)),
        (list(np.array([1, 0, 2, 1], dtype=np.uint8)), torch.long, (4,)),
        ([0.5, -1.0, 2.0, 0.0], torch.float32, (4,)),
        ([[1.0, 0.0]] * 4, torch.float32, (4, 2)),
        (list(np.ones((4, 3))), torch.float32, (4, 3)),
        ([[1, 0]] * 4, torch.float32, (4, 2)),
        ([True, False, True, True], torch.long, (4,)),
    ],
)
def test_labels_are_classes_or_targets_by_their_type(processor, rows, labels, dtype, shape):
    """The loss is guessed from the type: classes that came as floats would be trained as several at once."""
    batch = DataCollatorForCalmClassification(processor)(
        [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    )
    assert batch["labels"].dtype == dtype
    assert batch["labels"].shape == shape
    assert "labels" not in DataCollatorForCalmClassification(processor)(rows)


@pytest.mark.parametrize("label", [None, "angry", [1, 0]], ids=str)
@pytest.mark.parametrize("place", [0, 2])
def test_a_label_that_is_no_number_is_named(processor, rows, label, place):
    """The batch would lack its labels, or fail in torch's words."""
    labels = [1, 0, 1, 0]
    labels[place] = label
    labelled = [{**row, "label": value} for row, value in zip(rows, labels, strict=True)]
    with pytest.raises(ValueError, match=r"label of row \d of the batch is .*number of its class"):
        DataCollatorForCalmClassification(processor)(labelled)


def test_features_made_beforehand_are_classified_as_the_clips(processor, rows):
    """Rows of shards hold no audio; beside rows that do, one of both would be left out unseen."""
    extractor, collator = processor.feature_extractor, DataCollatorForCalmClassification(processor)
    clips = [{"audio": row["audio"], "label": 1} for row in rows]
    made = []
    for clip in clips:
        features = extractor(clip["audio"], sampling_rate=extractor.sampling_rate)
        real = np.asarray(features["input_features_mask"][0], dtype=bool)
        made.append({"input_features": np.asarray(features["input_features"][0])[real], "label": 1})
    expected, batch = collator(clips), collator(made)
    assert batch.keys() == expected.keys()
    for name, values in batch.items():
        torch.testing.assert_close(values, expected[name])
    with pytest.raises(ValueError, match="Row 1 of the batch has `audio`, and others have `input_features`"):
        collator([made[0], clips[1]])


def test_files_bytes_and_waveforms_are_the_same_clip(processor, rows, tmp_path):
    """A data set may hold any of them; `datasets` gives undecoded audio as a dict."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, rows[0]["audio"], 16000, subtype="FLOAT")
    forms = [rows[0]["audio"], str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}]
    forms += [torch.from_numpy(rows[0]["audio"]), rows[0]["audio"].tolist()]
    batch = DataCollatorForCalmClassification(processor)([{"audio": form} for form in forms])
    for row in batch["input_features"]:
        torch.testing.assert_close(row, batch["input_features"][0], atol=1e-4, rtol=0)


def test_integers_are_scaled_before_they_are_augmented(processor, rows):
    """Half of the range of uint8 is silence, and amplified as it stands it would be a constant."""
    augmentation = WaveformAugmentation(speed=None, gain_db=(0.0, 0.0), noise_probability=0.0)
    plain, varied = (DataCollatorForCalmClassification(processor, each) for each in (None, augmentation))
    clips = [{**row, "audio": np.uint8(128 + 100 * np.clip(row["audio"], -1, 1)), "labels": 0} for row in rows]
    torch.testing.assert_close(varied(clips)["input_features"], plain(clips)["input_features"])


def test_augmentation_hides_real_frames_only(processor, rows):
    """Augmented features keep their shape and their padding; off, they are the plain ones."""
    plain = DataCollatorForCalmClassification(processor)(rows)
    hidden = DataCollatorForCalmClassification(
        processor, spec_augment=SpecAugment(num_time_masks=1, num_frequency_masks=2, max_frequency_bins=4)
    )(rows)
    assert torch.equal(hidden["input_features_mask"], plain["input_features_mask"])
    changed = hidden["input_features"] != plain["input_features"]
    assert changed.any()
    assert hidden["input_features"][changed].eq(0).all()
    assert not changed[~plain["input_features_mask"].bool()].any()


class TestSeededCollator:
    @pytest.fixture
    def numbered(self, rows) -> list[dict]:
        return [{**row, "row": 10 + index} for index, row in enumerate(rows)]

    @pytest.fixture
    def collator(self, processor) -> SeededCollator:
        augmentations = WaveformAugmentation(), SpecAugment(max_frequency_bins=2)
        return SeededCollator(DataCollatorForCalmPreTraining(processor, *augmentations), seed=3)

    def test_what_a_process_did_before_changes_no_batch(self, collator, numbered):
        """Or a resumed run, whose workers have done nothing yet, would draw other masks."""
        first = collator(numbered)
        np.random.rand(7), torch.rand(7), collator(numbered[:2])
        assert_same(collator(numbered), first)

    def test_no_draw_is_taken_from_the_global_states(self, collator, numbered):
        """They belong to the training process, to the dropout above all."""
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
        collator(numbered)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()

    def test_epochs_and_rows_draw_anew(self, collator, numbered):
        first = collator(numbered)
        collator.set_epoch(1)
        assert not torch.equal(collator(numbered)["mask_time_indices"], first["mask_time_indices"])
        collator.set_epoch(0)
        assert_same(collator(numbered), first)
        others = collator([{**row, "row": row["row"] + 1} for row in numbered])
        assert not torch.equal(others["input_features"], first["input_features"])

    @pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_that_stay_hear_of_a_new_epoch(self, collator, numbered, context):
        loader = torch.utils.data.DataLoader(
            numbered, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True,
            multiprocessing_context=context,
        )  # fmt: skip
        for epoch in (0, 1, 0):
            collator.set_epoch(epoch)
            (batch,) = loader
            assert_same(batch, collator(numbered))

    def test_a_row_without_a_number_is_refused(self, collator, rows):
        with pytest.raises(ValueError, match="no `row`.*add_column"):
            collator(rows)

    def test_clips_are_named(self, collator, numbered):
        numbered[0]["file_name"] = "a.wav"
        assert collator(numbered)["clips"] == ["a.wav", "11", "12", "13"]


def assert_same(batch: dict, other: dict) -> None:
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        assert value == other[key] if key == "clips" else torch.equal(value, other[key]), key


def npy(patches: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, patches)
    return stream.getvalue()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2e-3)])
def test_features_computed_beforehand_give_the_batch_of_the_audio(processor, rows, dtype, tolerance):
    """Else a model would be trained on one kind of input and used on another."""
    expected = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)(rows)
    computed = []
    for row in rows:
        inputs = processor.feature_extractor(row["audio"], sampling_rate=16000, return_tensors="np")
        real = inputs["input_features"][0, inputs["input_features_mask"][0] > 0]
        computed.append({"input_features": npy(real.astype(dtype)), "text": row["text"]})
    batch = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)(computed)
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        assert batch[key].dtype == value.dtype, key
        torch.testing.assert_close(batch[key], value, atol=tolerance, rtol=tolerance, msg=key)
    hidden = DataCollatorForCalmPreTraining(processor, spec_augment=SpecAugment(1, 20, 1, 4))(computed)
    assert (hidden["input_features"] != expected["input_features"]).any()
    with pytest.raises(ValueError, match="`waveform_augmentation` needs waveforms"):
        DataCollatorForCalmPreTraining(processor, WaveformAugmentation())(computed)


def test_features_that_are_none_are_refused(processor):
    """A header is a claim: memory for a terabyte must not be taken for it, and no object is ever unpickled."""
    collator = DataCollatorForCalmPreTraining(processor)
    plain = npy(np.zeros((1, 8), np.float32))
    claim, torn = plain.replace(b"(1, 8), }      ", b"(9999999, 8), }"), plain.replace(b"(1, 8), }", b"(1, 8    ")
    for features, problem in (
        (np.zeros((3, 5)), "shape .3, 5. are no patches of 8 values"), (np.zeros((0, 8)), "no patches"),
        (npy(np.array([None])), "OBJECT|object"), (b"no array", "magic"), (claim, "cannot reshape"),
        (torn, "no `.npy` file"), (plain[:20], "no `.npy` file"), (plain[:-3], "buffer size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            collator([{"input_features": features, "text": "go"}])
