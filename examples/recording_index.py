"""The index behind retrieve.py: acoustic tokens and embeddings of a folder's recordings, in one safetensors file.

A recording is cut into equal passages, each embedded separately. Memory scales with the longest recording (230 MB per
hour) and the index (about 12 MB per hour at E = 384); the model never processes a whole recording at once.

Dimensions: R passages, T acoustic tokens of a passage, E width of the aligned space.
"""

import hashlib
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from speech_sources import AUDIO_FORMATS

from modeling_calm import CalmModel
from processing import AudioError, CalmProcessor, load_audio

logger = logging.getLogger(__name__)

BATCH_SIZE = 16  # passages at once
SAVED_EVERY_S = 300.0  # while an archive is read: the most that a power cut costs


@dataclass
class Recording:
    """One indexed file.

    Args:
        stamp: its modification time (ns) and size (bytes) when it was indexed.
        spans: (R, 2) float64, start and end of its passages in s.
        embeds: (R, E) float32, L2-normalised.
        tokens: R tensors (T, E), float16, centred.
    """

    stamp: list[int]
    spans: torch.Tensor
    embeds: torch.Tensor
    tokens: list[torch.Tensor]


def fingerprint(model: CalmModel, processor: CalmProcessor) -> str:
    """SHA-256 of all that determines an acoustic token's direction: feature extractor, SpecTran and its projection."""
    digest = hashlib.sha256(processor.feature_extractor.to_json_string().encode())
    digest.update(json.dumps(model.config.audio_config.to_dict(), sort_keys=True, default=str).encode())
    for part in (model.audio_model, model.audio_projection):
        for name, value in part.state_dict().items():
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def embed_recording(model: CalmModel, processor: CalmProcessor, file: Path, passage_s: float) -> Recording:
    """Cut a file into equal passages of at most `passage_s` seconds and embed each.

    Equal, because a short remainder would be normalised by the statistics of its few frames.

    Raises:
        AudioError: if the file cannot be read.
    """
    extractor, status = processor.feature_extractor, file.stat()
    rate = extractor.sampling_rate
    waveform = load_audio(file, sampling_rate=rate)
    passages = np.array_split(waveform, max(1, math.ceil(len(waveform) / (passage_s * rate))))
    ends = np.cumsum([len(passage) for passage in passages]) / rate
    embeds, tokens = [], []
    for first in range(0, len(passages), BATCH_SIZE):
        batch = processor(audio=passages[first : first + BATCH_SIZE], sampling_rate=rate, return_tensors="pt")
        outputs = model.get_audio_features(**batch.to(model.device))
        embeds.append(outputs.pooler_output.float().cpu())
        projected = model.project(outputs.last_hidden_state, outputs.acoustic_tokens_mask).half().cpu()  # (B, T, E)
        tokens += [row[real] for row, real in zip(projected, outputs.acoustic_tokens_mask.cpu(), strict=True)]
    spans = torch.tensor(np.stack((np.append(0.0, ends[:-1]), ends), axis=1))
    return Recording([status.st_mtime_ns, status.st_size], spans, torch.cat(embeds), tokens)


def save_index(file: Path, recordings: dict[str, Recording], settings: dict) -> None:
    """Write the index atomically; its header holds the files and the settings as JSON."""
    kept = recordings.values()
    tokens = [passage for recording in kept for passage in recording.tokens]
    tensors = {
        "spans": torch.cat([recording.spans for recording in kept]),
        "embeds": torch.cat([recording.embeds for recording in kept]),
        "tokens": torch.cat(tokens),
        "token_counts": torch.tensor([len(passage) for passage in tokens]),
    }
    files = [[name, *recording.stamp, len(recording.spans)] for name, recording in recordings.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".partial-{os.getpid()}")
    save_file(tensors, partial, metadata={"calm_index": json.dumps({"settings": settings, "files": files})})
    partial.replace(file)


def load_index(file: Path) -> tuple[dict[str, Recording], dict]:
    """What `save_index` wrote: the recordings by name, and the settings.

    Raises:
        ValueError: if the file is not an index.
    """
    try:
        with safe_open(file, "pt") as stored:
            header = json.loads(stored.metadata()["calm_index"])
            spans, embeds, tokens, counts = map(stored.get_tensor, ("spans", "embeds", "tokens", "token_counts"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{file}' is no index of this program ({error}). Remove it, or name another `--index`."
        ) from error
    passages, recordings, first = tokens.split(counts.tolist()), {}, 0
    for name, modified, size, number in header["files"]:
        rows = slice(first, first := first + number)
        recordings[name] = Recording([modified, size], spans[rows], embeds[rows], list(passages[rows]))
    return recordings, header["settings"]


def refresh_index(model, processor, folder: Path, file: Path, passage_s: float, key: str) -> dict[str, Recording]:
    """Index the new and changed files of a folder, drop deleted ones, and keep the rest.

    An index of other weights or another `passage_s` is rebuilt. An interrupted run keeps what it has indexed; a killed
    one loses the last minutes.

    Raises:
        ValueError: if there are no recordings, or none that can be read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_recording(path))
    if not names:
        raise ValueError(f"'{folder}' is no folder that holds recordings; {sorted(AUDIO_FORMATS)} are read.")
    settings = {"fingerprint": key, "passage_s": passage_s}
    stored, found = load_index(file) if file.exists() else ({}, None)
    stored = stored if found == settings else {}
    recordings = {name: stored[name] for name in names if name in stored and _is_current(stored[name], folder / name)}
    problems, changed, saved = [], 0, time.monotonic()
    try:
        for name in names:
            if name in recordings:
                continue
            try:
                recordings[name] = embed_recording(model, processor, folder / name, passage_s)
                changed += 1
            except AudioError as error:
                problems.append(str(error))
            if recordings and time.monotonic() - saved > SAVED_EVERY_S:
                save_index(file, recordings, settings)
                saved = time.monotonic()
    finally:
        recordings = {name: recordings[name] for name in names if name in recordings}
        if recordings and (changed or recordings.keys() != stored.keys()):
            save_index(file, recordings, settings)
    logger.info("Recordings indexed in '%s': %d, of which new or changed: %d", file, len(recordings), changed)
    if problems:
        logger.warning("Recordings skipped: %d\n  %s", len(problems), "\n  ".join(problems))
    if not recordings:
        raise ValueError(f"None of the {len(names)} recordings in '{folder}' can be read: " + "; ".join(problems))
    return recordings


def _is_current(recording: Recording, path: Path) -> bool:
    status = path.stat()
    return recording.stamp == [status.st_mtime_ns, status.st_size]


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_FORMATS and path.is_file()
