"""Find what was said: index a folder of recordings and answer text or audio queries.

    python examples/retrieve.py --model RUN --recordings FOLDER --query "enter six two four"
    python examples/retrieve.py --model RUN --recordings FOLDER --query_audio clip.wav --top_k 10

A recording is cut into equal passages of at most `--passage_s` seconds, so that a query locates a passage in an hour
of speech. The index is stored, and only new or changed files are read again.

Our choices: a passage's score is the cosine of its embedding with the query's; the time span within it is the
contiguous run of acoustic tokens around the best-matching one whose cosine with the query exceeds the mean over the
passage's tokens.

Dimensions: R passages, T acoustic tokens of a passage, E width of the aligned space.
"""

import argparse
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from recording_index import Recording, fingerprint, refresh_index
from scoring import load_processor
from torch.nn.functional import normalize
from transformers import AutoModel
from transformers.utils.logging import set_verbosity_error

from modeling_calm import CalmModel
from processing import CalmProcessor, load_audio

INDEX_FILE = "calm_index.safetensors"


@dataclass
class Match:
    """A passage that matches a query: its score, its file and its best span (s from the start of the file)."""

    score: float
    file: str
    start: float
    end: float


def load(name: str) -> tuple[CalmModel, CalmProcessor]:
    """The model and the processor of a checkpoint, ready to embed.

    Raises:
        RuntimeError: if the checkpoint lacks weights.
        ValueError: if it has no processor, or is not a `CalmModel`.
    """
    processor = load_processor(name)
    model = AutoModel.from_pretrained(name)
    if not isinstance(model, CalmModel):
        raise ValueError(f"'{name}' holds no CalmModel, but a {type(model).__name__}. Give a run of pretrain.py.")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


@torch.inference_mode()
def embed_query(model: CalmModel, processor: CalmProcessor, text: str | None, audio: str | None) -> torch.Tensor:
    """The query (E,) in the aligned space, L2-normalised.

    Raises:
        ValueError: if the tokenizer knows no word of the text.
        AudioError: if the clip cannot be read.
    """
    if audio is not None:
        rate = processor.feature_extractor.sampling_rate
        batch = processor(audio=load_audio(audio, sampling_rate=rate), sampling_rate=rate, return_tensors="pt")
        return model.get_audio_features(**batch.to(model.device)).pooler_output[0].float().cpu()
    query = model.get_text_features(**processor(text=[text], return_tensors="pt").to(model.device)).pooler_output[0]
    if not query.any():
        raise ValueError(f"The query {text!r} holds no word that the model's tokenizer knows. Give one that does.")
    return query.float().cpu()


def best_span(similarities: torch.Tensor) -> tuple[int, int]:
    """Start and end (exclusive) of the run around the highest of (T,) cosines in which all exceed their mean.

    Example:
        >>> best_span(torch.tensor([0.8, 0.0, 0.6, 0.9, 0.1]))
        (2, 4)
    """
    best = int(similarities.argmax())
    low = (similarities <= similarities.mean()).nonzero().flatten()
    first = low[low < best].max() + 1 if (low < best).any() else 0
    last = low[low > best].min() if (low > best).any() else len(similarities)
    return int(first), int(last)


def search(recordings: dict[str, Recording], query: torch.Tensor, seconds_per_token: float, top_k: int) -> list[Match]:
    """The `top_k` passages nearest to the query (E,), best first."""
    places = [(name, row) for name, recording in recordings.items() for row in range(len(recording.spans))]
    scores = torch.cat([recording.embeds for recording in recordings.values()]) @ query  # (R,)
    matches = []
    for place in scores.argsort(descending=True, stable=True)[:top_k].tolist():
        name, row = places[place]
        start, end = recordings[name].spans[row].tolist()
        first, last = best_span(normalize(recordings[name].tokens[row].float(), dim=-1) @ query)
        span = start + first * seconds_per_token, min(end, start + last * seconds_per_token)
        matches.append(Match(float(scores[place]), name, *span))
    return matches


def main(argv: list[str] | None = None) -> list[Match]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run of pretrain.py, or a CALM checkpoint of the Hub")
    parser.add_argument("--recordings", type=Path, required=True, help="folder, searched with its subfolders")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--query", help="words to find")
    query.add_argument("--query_audio", help="recording that says them")
    parser.add_argument("--top_k", type=int, default=5, help="how many passages to show")
    parser.add_argument("--passage_s", type=float, default=10.0, help="longest passage in seconds")
    parser.add_argument("--index", type=Path, help="folder of the index; by default one under runs/index")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.top_k < 1:
        raise ValueError(f"`--top_k` is {options.top_k}; at least one passage can be shown.")

    model, processor = load(options.model)
    seconds = processor.feature_extractor.seconds_per_token
    if not options.passage_s >= seconds:
        raise ValueError(f"`--passage_s` is {options.passage_s}; an acoustic token of this model lasts {seconds} s.")
    embedded = embed_query(model, processor, options.query, options.query_audio)
    key = fingerprint(model, processor)
    folder = options.recordings.expanduser().resolve()
    name = hashlib.sha256(f"{folder}\n{options.passage_s}\n{key}".encode()).hexdigest()[:16]
    file = (options.index or Path("runs/index") / name) / INDEX_FILE
    recordings = refresh_index(model, processor, folder, file, options.passage_s, key)
    matches = search(recordings, embedded, seconds, options.top_k)
    print(f"{'rank':>4}  {'score':>6}  {'start':>8} - {'end':<8}  file")
    for rank, match in enumerate(matches, start=1):
        span = f"{match.start:8.2f} - {match.end:<8.2f}"
        print(f"{rank:>4}  {match.score:6.3f}  {span}  {match.file}")
    return matches


if __name__ == "__main__":
    set_verbosity_error()  # hides the list of unused pretraining heads; `load` checks that nothing else is missing
    main()
