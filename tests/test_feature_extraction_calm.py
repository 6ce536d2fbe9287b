"""`CalmFeatureExtractor`: a clip gives the same patches alone or in company, loud or quiet."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from modeling_calm import CalmAudioConfig
from processing import CalmFeatureExtractor
from processing.log_mel_calm import normalize

RATE = 16000
OTHER = {
    "feature_size": 64, "sampling_rate": 8000, "padding_value": 0.5, "n_fft": 256, "win_length": 200, "hop_length": 80,
    "patch_frames": 2, "patch_bins": 16, "token_frames": 20, "do_normalize": False, "dynamic_range": 60.0,
}  # fmt: skip


@pytest.fixture
def extractor() -> CalmFeatureExtractor:
    """The default geometry but with four bands: S = 6 x 4 = 24, D = 4 x 20 = 80."""
    return CalmFeatureExtractor(patch_bins=20)


def extract(extractor, audio, **kwargs):
    return extractor(audio, sampling_rate=RATE, **{"return_tensors": "pt", **kwargs})


def real_patches(inputs, row=0) -> torch.Tensor:
    return inputs["input_features"][row][inputs["input_features_mask"][row].bool()]


def assert_whole_tokens(extractor, inputs) -> None:
    assert list(inputs) == ["input_features", "input_features_mask"]
    for features, mask in zip(inputs["input_features"], inputs["input_features_mask"], strict=True):
        assert features.shape == (len(mask), extractor.patch_frames * extractor.patch_bins)
        assert len(mask) > 0
        assert len(mask) % extractor.patches_per_token == 0


def test_patches_are_the_normalised_spectrogram(extractor, noise):
    """The extractor may only join the parts: a step left out would train a model on something undocumented."""
    waveform = torch.from_numpy(noise(0.5))[None]
    expected = normalize(*extractor.log_mel(waveform))
    inputs = extract(extractor, waveform)
    assert inputs["input_features"].dtype == torch.float32
    assert inputs["input_features_mask"].dtype == torch.int64
    assert torch.equal(extractor.unpatchify(real_patches(inputs)), expected[0])


@pytest.mark.parametrize("samples", [1, 399, 400, 4239, 4240, 4241, 9000, RATE])
def test_a_patch_is_real_when_it_holds_a_real_frame(extractor, samples):
    """A mask one patch short loses the last syllable; one patch long lets padding into the model."""
    inputs = extract(extractor, np.ones(samples, dtype=np.float32))
    frames = extractor.count_frames(samples)
    holds_real_frame = [step * extractor.patch_frames < frames for step in range(1000) for _ in range(4)]
    mask = inputs["input_features_mask"][0].bool().tolist()
    assert mask == holds_real_frame[: len(mask)]
    assert sum(mask) == sum(holds_real_frame)
    assert_whole_tokens(extractor, inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "longest"},
        {"padding": "max_length", "max_length": 100},
        {"padding": True, "max_length": 50, "truncation": True},
        {"padding": "max_length", "max_length": 25, "truncation": True},
        {"padding": False, "return_tensors": None},
        {"pad_to_multiple_of": 16},
        {"pad_to_multiple_of": 5, "max_length": 30, "truncation": True},
    ],
)
def test_the_number_of_patches_is_always_whole_tokens(extractor, noise, options):
    """The model cuts the patches into windows of S; `pad_to_multiple_of=8` for the text may not break that."""
    inputs = extract(extractor, [noise(0.7), noise(0.2), noise(1.0)], **options)
    assert_whole_tokens(extractor, inputs)


def test_padding_options_do_not_change_what_is_heard(extractor, noise):
    """Every way to pad leaves the real patches as they are, and marks the rest as padding."""
    clips = [noise(0.7), noise(0.2)]
    plain = extract(extractor, clips)
    longer = extract(extractor, clips, padding="max_length", max_length=150)
    ragged = extract(extractor, clips, padding=False, return_tensors=None)
    assert longer["input_features"].shape[1] == 168  # 150 patches are 6.25 tokens
    for row in range(2):
        assert torch.equal(real_patches(longer, row), real_patches(plain, row))
        mask = np.array(ragged["input_features_mask"][row], dtype=bool)
        np.testing.assert_array_equal(ragged["input_features"][row][mask], real_patches(plain, row))


def test_truncation_keeps_the_beginning(extractor, noise):
    """Features and mask are cut at the same place; otherwise the mask belongs to another clip's length."""
    whole = extract(extractor, noise(1.0))
    cut = extract(extractor, noise(1.0), max_length=48, truncation=True)
    assert cut["input_features"].shape[1] == cut["input_features_mask"].shape[1] == 48
    assert torch.equal(cut["input_features"], whole["input_features"][:, :48])
    assert cut["input_features_mask"].all()


def test_pad_carries_the_mask(extractor, noise):
    """A data loader that pads rows with `pad` would otherwise lose which patches are real, or mask text instead."""
    rows = [
        {key: value[0] for key, value in extract(extractor, noise(seconds), return_tensors="np").items()}
        for seconds in (0.2, 0.7)
    ]
    batch = extractor.pad(rows, padding=True, return_tensors="pt")
    assert list(batch) == ["input_features", "input_features_mask"]
    together = extract(extractor, [noise(0.2), noise(0.7)])
    assert torch.equal(batch["input_features_mask"], together["input_features_mask"])
    torch.testing.assert_close(batch["input_features"], together["input_features"], atol=1e-5, rtol=0)
    cut = extractor.pad(rows, padding=True, max_length=24, truncation=True, return_tensors="pt")
    assert cut["input_features"].shape[:2] == cut["input_features_mask"].shape == (2, 24)
    without_mask = extractor.pad({"input_features": [row["input_features"] for row in rows]}, return_tensors="pt")
    assert without_mask["input_features_mask"].sum(-1).tolist() == [len(row["input_features"]) for row in rows]
    left = CalmFeatureExtractor(patch_bins=20, padding_side="left").pad(rows, padding=True, return_tensors="pt")
    assert torch.equal(
        real_patches(left), torch.from_numpy(rows[0]["input_features"])[rows[0]["input_features_mask"] > 0]
    )
    called = extract(CalmFeatureExtractor(patch_bins=20, padding_side="left"), [noise(0.2), noise(0.7)])
    assert torch.equal(called["input_features_mask"], left["input_features_mask"])


def test_a_clip_does_not_see_its_company(extractor, sample_clips, tone):
    """Statistics that saw padding, or another clip, made embeddings depend on the batch in fairseq and torchaudio."""
    telephone = tone(700, 2.3)  # upper bins at the floor, the hardest case for the rounding of a mean
    clips = [telephone, *sample_clips, sample_clips[0][:300]]
    batch, backwards = extract(extractor, clips), extract(extractor, clips[::-1])
    for row, clip in enumerate(clips):
        alone = real_patches(extract(extractor, clip))
        torch.testing.assert_close(real_patches(batch, row), alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(real_patches(backwards, len(clips) - 1 - row), alone, atol=1e-5, rtol=0)


def test_the_level_of_a_recording_changes_nothing(extractor, sample_clips):
    """RAVDESS peaks below 0.01 of full scale: loudness is the microphone's distance, not the message."""
    for clip in sample_clips:
        loud, quiet = extract(extractor, clip), extract(extractor, clip * np.float32(0.003))
        torch.testing.assert_close(quiet["input_features"], loud["input_features"], atol=1e-3, rtol=0)


def test_a_quiet_recording_survives(extractor, sample_clips):
    """16-bit PCM at -50 dB keeps the shape of speech; an absolute floor would leave a constant."""
    clip = sample_clips[0]
    quiet = np.round(clip / np.abs(clip).max() * 0.003 * 32768).astype(np.int16)
    loud, quiet = real_patches(extract(extractor, clip)), real_patches(extract(extractor, quiet))
    assert torch.corrcoef(torch.stack((loud.flatten(), quiet.flatten())))[0, 1] > 0.8


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_and_a_constant_are_finite(extractor, level):
    """The logarithm of nothing and a deviation of nothing: one NaN clip would destroy a training run."""
    features = extract(extractor, np.full(RATE, level, dtype=np.float32))["input_features"]
    assert features.isfinite().all()
    assert features.abs().max() <= 80**0.5  # one bin of 80 that holds all of the deviation


@pytest.mark.parametrize("samples", [1, 100, 400, 4000])
def test_a_short_clip_gives_one_token(extractor, samples, noise):
    """A one-word answer is shorter than a window; refusing it would lose the row."""
    inputs = extract(extractor, noise()[:samples])
    assert inputs["input_features"].shape[1] == extractor.patches_per_token
    assert inputs["input_features_mask"][0, 0] == 1
    assert inputs["input_features"].isfinite().all()


@pytest.mark.parametrize(("dtype", "scale", "offset"), [("int8", 128, 0), ("uint8", 128, 128), ("int16", 32768, 0)])
def test_integer_pcm_is_scaled_by_the_range_of_its_type(extractor, tone, dtype, scale, offset):
    """Unscaled 16-bit samples are 90 dB too loud, and unsigned 8-bit ones ride on an offset."""
    pcm = np.round(tone(1000, 0.2) * (scale - 1) + offset).astype(dtype)
    as_float = (pcm.astype(np.float32) - offset) / scale
    plain = CalmFeatureExtractor(do_normalize=False)
    integers, floats = extract(plain, pcm), extract(plain, as_float)
    assert torch.equal(integers["input_features"], floats["input_features"])
    full_scale = np.array([np.iinfo(np.int32).min, 0], dtype=np.int32)
    loud = extract(plain, np.resize(full_scale, 1000)), extract(plain, np.resize(np.float32([-1, 0]), 1000))
    assert torch.equal(loud[0]["input_features"], loud[1]["input_features"])


def test_every_form_of_a_batch_means_the_same(extractor, noise):
    """Lists, arrays and tensors come from different readers; a clip must not be taken for a batch of samples."""
    clips = [noise(0.3, 1), noise(0.3, 2), noise(0.3, 3)]
    expected = extract(extractor, clips)["input_features"]
    for form in (
        np.stack(clips), torch.from_numpy(np.stack(clips)), tuple(clips), [torch.from_numpy(clip) for clip in clips],
        [clip.tolist() for clip in clips], [clip.astype(np.float64) for clip in clips],
    ):  # fmt: skip
        assert torch.equal(extract(extractor, form)["input_features"], expected)
    for form in (clips[0], torch.from_numpy(clips[0]), clips[0].tolist(), clips[0][None]):
        assert torch.equal(extract(extractor, form)["input_features"], expected[:1])
    assert isinstance(extract(extractor, clips, return_tensors=None)["input_features"], np.ndarray)


def test_extraction_leaves_the_waveform_as_it_was(extractor, noise):
    """The features are computed in place; the caller's recording is not ours to change."""
    waveform = torch.from_numpy(noise(0.3))
    before = waveform.clone()
    extract(extractor, waveform)
    assert torch.equal(waveform, before)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "Clip 0 is empty"),
        ([np.ones(800, np.float32), np.zeros(0, np.float32)], "Clip 1 is empty"),
        ([], "holds no clip"),
        ([np.ones(800, np.float32), np.array([0.0, np.nan], np.float32)], "Clip 1 holds NaN or infinity"),
        (np.array([0.0, -np.inf], np.float32), "Clip 0 holds NaN or infinity"),
        (np.full(800, 1e30, np.float32), r"Clip 0 holds .* samples above 1e\+15"),
        (np.array(["a", "b"]), "Clip 0 is no row of numbers"),
        ([None, None], "Clip 0 is no row of numbers"),
        (np.zeros((0, 700), np.float32), "The batch holds no clip"),
        (np.ones((2, 800), np.float32), "one stereo recording or two clips"),
        (np.ones((800, 2), np.float32), "one stereo recording or two clips"),
        (torch.ones(2, 800), "one stereo recording or two clips"),
        ([np.ones((2, 800), np.float32)], r"Clip 0 has shape \(2, 800\).*mono"),
        (np.ones((3, 2, 800), np.float32), r"Clip 0 has shape \(2, 800\).*mono"),
        (np.arange(800), "Clip 0 has dtype torch.int64, whose full scale is unknown"),
        (np.ones(800, bool), "full scale is unknown"),
        ("speech.wav", "takes waveforms, not files.*load_audio"),
        (["speech.wav"], "takes waveforms, not files.*load_audio"),
        ([{"path": "speech.wav", "bytes": None}], "takes waveforms, not files.*load_audio"),
    ],
)
def test_what_cannot_be_heard_is_refused_by_name(extractor, audio, message):
    """Each of these would otherwise become a plausible but wrong embedding, or an error from deep inside torch."""
    with pytest.raises(ValueError, match=message):
        extract(extractor, audio)


@pytest.mark.parametrize("rate", [None, 8000, 44100])
def test_the_sampling_rate_must_be_given_and_fit(extractor, noise, rate):
    """A wrong rate moves every formant and fails silently; that is the commonest complaint about such models."""
    with pytest.raises(ValueError, match="must be given and be 16000 Hz"):
        extractor(noise(), sampling_rate=rate)


@pytest.mark.parametrize("wrong", [{"patch_bins": 30}, {"token_frames": 25}, {"win_length": 600}, {"win_length": 0}])
def test_a_geometry_that_does_not_tile_is_refused(wrong):
    """Found at the first clip instead, hours into a job, it would be a reshape error."""
    with pytest.raises(ValueError, match="must be a multiple of"):
        CalmFeatureExtractor(**wrong)


def test_save_and_load_keep_every_setting(tmp_path, noise):
    """A checkpoint whose features differ from its training features gives silently wrong embeddings."""
    extractor = CalmFeatureExtractor(**OTHER)
    extractor.save_pretrained(tmp_path)
    expected = extractor(noise(), sampling_rate=8000, return_tensors="pt")
    for kind in (CalmFeatureExtractor, AutoFeatureExtractor):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is CalmFeatureExtractor
        assert {name: getattr(loaded, name) for name in OTHER} == OTHER
        assert loaded.to_dict() == extractor.to_dict()
        inputs = loaded(noise(), sampling_rate=8000, return_tensors="pt")
        assert torch.equal(inputs["input_features"], expected["input_features"])


def test_the_geometry_is_that_of_the_audio_config():
    """The two packages agree by numbers only; a field forgotten here would give patches the model misreads."""
    config = CalmAudioConfig(
        sampling_rate=8000, hop_length=100, num_mel_bins=40, patch_frames=5, patch_bins=10, token_frames=15
    )
    extractor = CalmFeatureExtractor.from_audio_config(config, win_length=200)
    assert extractor.patches_per_token == config.patches_per_token
    assert extractor.seconds_per_token == config.seconds_per_token
    assert extractor.win_length == 200
    inputs = extractor(np.ones(8000, np.float32), sampling_rate=8000, return_tensors="pt")
    assert inputs["input_features"].shape[-1] == config.patch_dim
    defaults, standard = CalmFeatureExtractor(), CalmAudioConfig()
    assert (defaults.feature_size, defaults.hop_length) == (standard.num_mel_bins, standard.hop_length)
    assert defaults.patches_per_token == standard.patches_per_token
