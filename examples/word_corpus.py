"""Synthetic speech over a wide vocabulary in many voices, to be mixed with real speech in pretraining.

    python examples/word_corpus.py --transcripts FOLDER --output runs/words
    accelerate launch examples/pretrain.py --dataset FOLDER --added_datasets FOLDER runs/words

A few hours of real speech hold few words, each said by few people: a model learns the utterances by heart. Here a
synthesizer reads whole training transcripts, and rows of words drawn at random from the transcripts and from the whole
words among the language model's wordpieces, at any rate and pitch, in a room more or less quiet. Its voices are no
substitute for people: the real speech has to remain a good part of what is heard, which is why it stands twice above.
"""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from built_folder import build_once, describe_recipe
from demo_corpus import demo_language_model
from speech_data import check_columns, refuse_missing
from speech_sources import DataArguments, load_split
from speech_synthesis import SpeechSynthesizer
from tqdm import tqdm
from transformers import AutoTokenizer

SAMPLING_RATE = 16000  # Hz
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp")
WHOLE = 0.35  # share of clips that read a transcript
LENGTHS = (1, 9)  # words in the others
KNOWN = 0.6  # share of their words that transcripts hold
FREQUENT = 12000  # wordpieces of a BERT stand in the order of their frequency
RATES, PITCHES, RANGES = (110, 230), (20, 85), (20, 80)  # words a minute; espeak's scales, see SpeechSynthesizer
NOISES = (-90.0, -50.0)  # dB of full scale, white
WHEELS = ("espeakng-loader", "numpy", "soundfile", "soxr")  # whose versions may change the bytes


def build_word_corpus(
    output_dir: str | Path,
    transcripts: list[str],
    words: list[str],
    num_clips: int,
    seed: int = 0,
    num_proc: int = 1,
    text_column: str = "text",
) -> Path:
    """Write the corpus as an audiofolder of one split, `train`, or return the one that the same call wrote before.

    A clip is a function of the seed and its number: neither `num_proc` nor `num_clips` changes it.

    Args:
        output_dir: the folder to make.
        transcripts: sentences to read, and to take words from; of training speech alone.
        words: a wider vocabulary.
        num_clips: 10,000 are about five hours.
        seed: draws texts, voices, rates, pitches and noise.
        num_proc: processes that speak.
        text_column: what the column of the texts is to be called.

    Raises:
        FileExistsError: if `output_dir` holds anything else.
        ImportError: if the demo wheels are not installed.
    """
    sources = [Path(__file__), Path(__file__).with_name("speech_synthesis.py")]
    settings = {
        "transcripts": transcripts, "words": words, "num_clips": num_clips, "seed": seed, "text_column": text_column,
    }  # fmt: skip
    recipe = describe_recipe(settings, sources, WHEELS)
    speak = partial(_speak, transcripts=transcripts, words=words, seed=seed)

    def write(folder: Path) -> None:
        _write_corpus(folder, speak, num_clips, num_proc, text_column)

    return build_once(Path(output_dir), recipe, write)


def _write_corpus(folder: Path, speak, num_clips: int, num_proc: int, text_column: str) -> None:
    (folder / "train").mkdir(parents=True)
    rows = [("file_name", text_column, "speaker", "duration")]
    # Not forked: each process loads espeak itself.
    with ProcessPoolExecutor(num_proc, get_context("spawn")) as pool:
        spoken = pool.map(partial(speak, folder / "train"), range(num_clips), chunksize=64)
        rows += tqdm(spoken, total=num_clips, desc="Speaking", unit=" clips")
    with open(folder / "train" / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@cache
def _synthesizer() -> SpeechSynthesizer:
    return SpeechSynthesizer(SAMPLING_RATE)  # one a process


def _speak(folder: Path, number: int, transcripts: list[str], words: list[str], seed: int) -> tuple:
    """Write one clip; returns its row of the metadata."""
    generator = np.random.default_rng((seed, number))
    text = draw_text(transcripts, words, generator)
    accent, variant = (generator.choice(names) for names in (ACCENTS, _synthesizer().variants()))
    rate, pitch, pitch_range = (int(generator.integers(*limits)) for limits in (RATES, PITCHES, RANGES))
    samples = _synthesizer()(text, f"{accent}+{variant}", rate=rate, pitch=pitch, pitch_range=pitch_range)
    noise = 10 ** (generator.uniform(*NOISES) / 20) * generator.standard_normal(len(samples))
    name = f"clip_{number:06d}.flac"
    soundfile.write(folder / name, np.clip(samples + noise, -1, 1), SAMPLING_RATE, subtype="PCM_16")
    return name, text, f"{accent}+{variant}", f"{len(samples) / SAMPLING_RATE:.4f}"


def draw_text(transcripts: list[str], words: list[str], generator: np.random.Generator) -> str:
    """A transcript, or a row of words from transcripts and vocabulary."""

    def draw(values: list[str]) -> str:
        return values[generator.integers(len(values))]

    if generator.random() < WHOLE:
        return draw(transcripts)
    number = generator.integers(*LENGTHS, endpoint=True)
    return " ".join(
        draw(spoken_words(draw(transcripts))) if generator.random() < KNOWN else draw(words) for _ in range(number)
    )


def spoken_words(text: str) -> list[str]:
    """The words of a text that can be read aloud; a dash by itself cannot."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def whole_words(tokenizer) -> list[str]:
    """The frequent words among the wordpieces: letters alone, three at least."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    for mark in "Ġ▁":  # before the first piece of a word, in byte-level BPE and SentencePiece
        if any(piece.startswith(mark) for piece in pieces):
            pieces = [piece.removeprefix(mark) for piece in pieces if piece.startswith(mark)]
    words = (piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower() and len(piece) > 2)
    return [word for word, _ in zip(words, range(FREQUENT), strict=False)]


def read_transcripts(folders: list[str], column: str) -> list[str]:
    """The transcripts of the training splits.

    Raises:
        ValueError: names a data set without the column, and lists the rows without a word to read.
    """
    found = []
    for folder in folders:
        dataset = load_split(DataArguments(dataset=folder, text_column=column), "train")
        check_columns(dataset, [("text_column", column)], folder)
        texts = [None if text is None or not spoken_words(str(text)) else str(text) for text in dataset[column]]
        refuse_missing(texts, column, f"train of {folder}", "transcript")
        found += texts
    return found


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcripts", nargs="+", required=True, help="Data sets whose training split is read.")
    parser.add_argument("--text_column", default="text", help="Their transcripts' column, and the corpus' own.")
    parser.add_argument("--output", default="runs/words", help="Folder to make.")
    parser.add_argument("--text_model", default="demo", help="The language model whose words are spoken.")
    parser.add_argument("--num_clips", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_proc", type=int, default=2, help="Processes.")
    options = parser.parse_args(argv)
    name = demo_language_model() if options.text_model == "demo" else options.text_model
    words = whole_words(AutoTokenizer.from_pretrained(name))
    transcripts = read_transcripts(options.transcripts, options.text_column)
    return build_word_corpus(
        options.output, transcripts, words, options.num_clips, options.seed, options.num_proc, options.text_column
    )


if __name__ == "__main__":
    main()
