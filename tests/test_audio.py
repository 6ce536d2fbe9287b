"""`processing.audio`: every format gives the same mono waveform, and nothing damaged gets through."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from processing.audio import AudioError, as_waveform, load_audio

DATA = Path(os.environ.get("CALM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RATE = 16000


def tone(frequency_hz: float, rate: int, duration_s: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    """A sine of shape `(num_samples,)` at `rate` Hz."""
    time_s = np.arange(round(duration_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def encode(waveform: np.ndarray, rate: int = RATE, **kwargs) -> bytes:
    """The bytes of a file that holds `waveform`, WAV unless told otherwise."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, **{"format": "WAV", **kwargs})
    return buffer.getvalue()


def wav(channels: int = 1, rate: int = RATE, num_bytes: int = 3200, claimed_bytes: int | None = None) -> bytes:
    """A 16-bit WAV file of zeros whose header says what the test wants."""
    claimed = num_bytes if claimed_bytes is None else claimed_bytes
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2, 16)
    riff = struct.pack("<4sI4s4sI", b"RIFF", min(36 + claimed, 2**32 - 1), b"WAVE", b"fmt ", 16)
    return riff + fmt + struct.pack("<4sI", b"data", claimed) + bytes(num_bytes)


def flac_claiming(num_samples: int) -> bytes:
    """A FLAC file of one second whose STREAMINFO claims another number of samples (36 bits at byte 21)."""
    content = bytearray(encode(tone(440, RATE), format="FLAC"))
    content[21] = content[21] & 0xF0 | num_samples >> 32
    content[22:26] = struct.pack(">I", num_samples & 0xFFFFFFFF)
    return bytes(content)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_level_and_length_at_every_rate(rate):
    """A file read at a wrong rate would move the tone; a resampler of unequal gain would change its level."""
    waveform = load_audio(encode(tone(440, rate), rate, subtype="FLOAT"))
    assert waveform.dtype == np.float32
    assert waveform.shape == (RATE,)
    # Away from both ends, where the filter meets silence, it must be the very tone sampled at 16 kHz.
    inner = slice(1600, -1600)
    np.testing.assert_allclose(waveform[inner], tone(440, RATE)[inner], atol=1e-4)


def test_resampling_leaves_no_alias():
    """Without the low-pass filter, 15 kHz recorded at 48 kHz would come back as a loud 1 kHz at 16 kHz."""
    waveform = load_audio(encode(tone(15000, 48000), 48000, subtype="FLOAT"))
    assert np.abs(waveform[1600:-1600]).max() < 1e-4


def test_several_channels_become_their_mean():
    """Taking one channel would lose the other speaker; summing would double the level."""
    left, right = tone(440, RATE), tone(1000, RATE, amplitude=0.2)
    stereo = load_audio(encode(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(stereo, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [("WAV", "PCM_16", 1e-4), ("FLAC", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.05), ("MP3", "MPEG_LAYER_III", 0.05)],
)
def test_all_formats_hold_the_same_signal(tmp_path, format, subtype, tolerance):
    """A decoder delay (MP3 pads its start) or a scale of 32768 would show here."""
    expected = tone(440, RATE)
    path = tmp_path / f"tone.{format.lower()}"
    path.write_bytes(encode(expected, format=format, subtype=subtype))
    waveform = load_audio(path)
    assert waveform.shape == expected.shape
    np.testing.assert_allclose(waveform[1600:-1600], expected[1600:-1600], atol=tolerance)


def test_every_kind_of_source_gives_the_same_samples(tmp_path):
    """A data set on disk, in parquet (bytes) and in an archive must train the same model."""
    content = encode(tone(440, 44100), 44100)
    path = tmp_path / "tone.wav"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "tones.zip", "w") as archive:
        archive.write(path, "tone.wav")
    expected = load_audio(path)
    archive = zipfile.ZipFile(tmp_path / "tones.zip")
    with path.open("rb") as file, archive, archive.open("tone.wav") as member:
        sources = [
            str(path), content, file, member, io.BytesIO(content),
            {"bytes": content, "path": "not/there.wav"}, {"bytes": None, "path": str(path)},
        ]  # fmt: skip
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), expected)


def test_block_borders_leave_no_trace(monkeypatch):
    """Long files are decoded in blocks: a filter restarted at each would click at every border."""
    content = encode(np.stack([tone(440, 44100), tone(3000, 44100)], axis=1), 44100)
    whole = load_audio(content)
    monkeypatch.setattr("processing.audio._BLOCK_FRAMES", 1000)
    np.testing.assert_allclose(load_audio(content), whole, atol=1e-6)


DAMAGED = {
    "not audio": (b"<html>404 not found</html>", "cannot be decoded"),
    "zero bytes": (b"", "cannot be decoded"),
    "empty wav": (encode(np.zeros(0)), "no samples"),
    "one sample that resampling loses": (encode(np.zeros(1), 44100), "no samples"),
    "NaN": (encode(np.append(tone(440, RATE), np.float32("nan")), subtype="FLOAT"), "NaN"),
    "infinite": (encode(np.full(10, np.inf), subtype="FLOAT"), "infinite"),
    "so loud that resampling overflows": (encode(np.full(10, 3e38), rate=RATE + 1, subtype="FLOAT"), "above 1e"),
    "double too large for float32": (encode(np.full(10, 1e300), subtype="DOUBLE"), "infinite"),
    "truncated wav": (encode(tone(440, RATE))[:20000], "truncated"),
    "truncated flac": (encode(tone(440, RATE), format="FLAC")[:5000], "cannot be decoded"),
    "truncated ogg": (encode(tone(440, RATE), format="OGG")[:3000], "cannot be decoded"),
    "truncated mp3": (encode(tone(440, RATE, 3.0), format="MP3")[:3000], "truncated"),
    "flac that claims one sample more": (flac_claiming(RATE + 1), "cannot be decoded|truncated"),
    "17 channels": (wav(channels=17), "17 channels"),
    "rate too low": (wav(rate=999), "999 Hz"),
    "rate too high": (wav(rate=2_000_000_000), "2000000000 Hz"),
    "flac of 49 days": (flac_claiming(2**36 - 1), r"4294967 s.*max_duration_s"),
}


@pytest.mark.parametrize(("content", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_an_error_that_names_the_file(tmp_path, content, problem):
    """In a data set of 10,000 clips an error without a name is useless, and a half clip without an error is worse."""
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    for source, name in [(path, str(path)), ({"bytes": content, "path": "a/b.wav"}, "a/b.wav"), (content, "<bytes>")]:
        with pytest.raises(AudioError, match=problem) as error:
            load_audio(source)
        assert str(error.value).startswith(f"{name}: ")


def test_an_absurd_claim_is_refused_before_any_sample_is_decoded(monkeypatch):
    """49 days of 16 kHz would be 275 GB: refusing them after allocation would take the machine down."""
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded before the header check"))
    for content in (flac_claiming(2**36 - 1), wav(channels=17), wav(rate=999)):
        with pytest.raises(AudioError):
            load_audio(content)


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_streamed_by_sox_or_ffmpeg_is_not_called_truncated(size):
    """Tools that write into a pipe leave these sizes in the header; the file is whole all the same."""
    assert load_audio(wav(num_bytes=3200, claimed_bytes=size)).shape == (1600,)


def test_the_longest_duration_is_the_callers_choice(tmp_path):
    """A day-long recording must be possible, but only by decision."""
    content = encode(tone(440, RATE, 2.0))
    assert load_audio(content, max_duration_s=2.0).shape == (2 * RATE,)
    with pytest.raises(AudioError, match="claims 2 s, more than 1 s"):
        load_audio(content, max_duration_s=1.0)


def test_paths_that_are_no_file_say_so(tmp_path):
    """A missing file is a mere "System error." to libsndfile."""
    for path in (tmp_path / "missing.wav", str(tmp_path), "https://example.org/clip.wav"):
        with pytest.raises(AudioError, match="no such file") as error:
            load_audio(path)
        assert str(path) in str(error.value)
    headerless = tmp_path / "samples.raw"
    headerless.write_bytes(bytes(100))
    with pytest.raises(AudioError, match=r"samples\.raw: cannot be decoded"):
        load_audio(headerless)


def test_sources_of_the_wrong_kind_say_what_to_pass(tmp_path):
    """The three usual slips: a waveform, a file opened as text, a column that `datasets` had already decoded."""
    with pytest.raises(TypeError, match="feature extractor"):
        load_audio(np.zeros(100, dtype=np.float32))
    with pytest.raises(AudioError, match="'rb'"):
        load_audio(io.StringIO("RIFF"))
    with pytest.raises(AudioError, match="decode=False"):
        load_audio({"array": np.zeros(100), "sampling_rate": RATE})
    with pytest.raises(ValueError, match="sampling_rate"):
        load_audio(wav(), sampling_rate=0)


def test_the_cause_stays_attached():
    """The code of libsndfile is what a bug report needs."""
    with pytest.raises(AudioError) as error:
        load_audio(b"not audio")
    assert isinstance(error.value.__cause__, soundfile.LibsndfileError)


@pytest.mark.skipif(not (DATA / "samples").is_dir(), reason="no real clips: set CALM_DATA to their folder")
def test_real_clips_load_whole():
    """Files of four corpora and as many encoders: a check of the header too strict would refuse some."""
    paths = sorted((DATA / "samples").glob("*.flac"))
    assert len(paths) == 14
    for path in paths:
        waveform = load_audio(path)
        assert waveform.shape == (soundfile.info(path).frames,)
        assert 1e-3 < np.abs(waveform).max() <= 1.0


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_samples_with_their_rate_are_the_file_they_came_from(rate):
    """Whoever decodes a file first and whoever gives its path must get one prediction."""
    samples = tone(440, rate) + tone(1000, rate, amplitude=0.3)
    expected = load_audio(encode(samples, rate, subtype="FLOAT"), RATE)
    for form in (
        {"array": samples},
        {"raw": samples.tolist()},
        {"array": samples.astype(np.float64), "path": "a.wav"},
    ):
        np.testing.assert_allclose(as_waveform({**form, "sampling_rate": rate}, RATE), expected, atol=1e-6)
    for dtype in (np.int16, np.int32):
        pcm = (samples * (np.iinfo(dtype).max + 1)).astype(dtype)
        np.testing.assert_allclose(as_waveform({"array": pcm, "sampling_rate": rate}, RATE), expected, atol=1e-4)


def test_samples_at_the_right_rate_are_handed_on():
    """The feature extractor scales integers by their type, which a copy as float would hide from it."""
    samples = np.arange(-50, 50, dtype=np.int16)
    for audio in (samples, {"array": samples, "sampling_rate": RATE}):
        assert as_waveform(audio, RATE) is samples


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ({"array": np.zeros(9)}, "need their rate"),
        ({"raw": np.zeros(9), "sampling_rate": 16}, "need their rate"),
        ({"array": np.zeros((9, 2)), "sampling_rate": 8000}, "have channels"),
        ({"array": np.zeros(9, dtype=np.uint8), "sampling_rate": 8000}, "dtype uint8 cannot be resampled"),
    ],
)
def test_samples_that_cannot_be_placed_in_time(audio, message):
    with pytest.raises(ValueError, match=message):
        as_waveform(audio, RATE)
