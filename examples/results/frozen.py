"""Frozen representations of clips, and linear probes on them.

A representation is the mean and standard deviation over time of an encoder's states for a clip; each system offers
two places to read from, and both together. The place, and the C of the probe, are selected on the validation split.
Our choice:

- CALM: `windows`, SpecTran's windows before the context layers, and `context`, its acoustic tokens;
- peers: `middle`, the hidden states after half of the layers, and `last`, the last ones;
- the spectrogram: `log_mel`, its logarithm, and `normalised`, SpecTran's input, without the level of the clip;
- eGeMAPS: its 88 functionals as they are.

Dimensions: B clips, N positions, F width of a representation.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peer_encoders import MODEL_TYPES, load_peer

from modeling_calm import CalmForPreTraining
from modeling_calm.spectran_calm import mean_and_deviation
from processing import CalmFeatureExtractor
from processing.log_mel_calm import normalize, real_frames

sys.path.append(str(Path(__file__).parents[1]))
from finetune import describe_labels, encode_labels  # noqa: E402
from linear_probe import Probe, egemaps_functionals, fit_probe  # noqa: E402
from scoring import load_checkpoint, load_config  # noqa: E402
from speech_data import DataArguments, read_split  # noqa: E402

SAMPLING_RATE = 16000  # Hz
# Maps waveforms to the features (B, F) of each place to read from.
Representation = Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]


class Clips(NamedTuple):
    """A labelled split: waveforms at 16 kHz and their classes (N,)."""

    waveforms: list[np.ndarray]
    labels: np.ndarray


def read_clips(data: DataArguments, *splits: str) -> tuple[dict[str, Clips], list[str]]:
    """The splits, and the classes, which the first split defines.

    Raises:
        ValueError: if the labels are not classes, or a split has classes that the first one lacks.
    """
    datasets = {name: read_split(data, name, SAMPLING_RATE, text=False, label=True) for name in splits}
    head = describe_labels(datasets[splits[0]], data.label_columns())
    if head["problem_type"] != "single_label_classification":
        raise ValueError("A probe tells classes, one a clip; name such a column with `--label_column`.")
    clips = {}
    for name, dataset in datasets.items():
        labels = np.asarray(encode_labels(dataset, head["label2id"], name)["label"])
        clips[name] = Clips([row["audio"] for row in dataset], labels)
    return clips, list(head["label2id"])


def from_checkpoint(folder: str, batch_size: int) -> Representation:
    """The representation of the frozen encoder of a pretrained CALM or peer.

    Raises:
        ValueError: if the folder holds neither.
    """
    if load_config(folder).model_type in MODEL_TYPES:
        peer = load_peer(folder)
        extractor, device = peer.extractor, next(peer.parameters()).device

        def encode(**batch: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            return peer.run(**batch, output_hidden_states=True)
    else:
        model, processor = load_checkpoint(folder, CalmForPreTraining)
        extractor, device, spectran = processor.feature_extractor, model.device, model.calm.audio_model

        def encode(**batch: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            windows, real = spectran.encode_windows(**batch)
            return {"windows": windows, "context": spectran.add_context(windows, real)}, real

    @torch.no_grad()
    def represent(waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        batches = []
        for start in range(0, len(waveforms), batch_size):
            clips = waveforms[start : start + batch_size]
            batch = extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(device)
            states, real = encode(**batch)
            batches.append(
                {name: mean_and_deviation(values.float(), real).cpu().numpy() for name, values in states.items()}
            )
        return _with_both({name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})

    return represent


def log_mel_statistics(waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The representation of the spectrogram of 80 mel bins, without any network."""
    extractor, found = CalmFeatureExtractor(), {"log_mel": [], "normalised": []}
    for waveform in waveforms:
        log_mel, frames = extractor.log_mel([torch.as_tensor(waveform)])
        real = real_frames(frames, log_mel.shape[1])
        for name, values in (("log_mel", log_mel), ("normalised", normalize(log_mel, frames))):
            found[name].append(mean_and_deviation(values, real)[0].numpy())
    return _with_both({name: np.stack(rows) for name, rows in found.items()})


def egemaps(waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The eGeMAPS functionals."""
    return {"functionals": egemaps_functionals(waveforms, SAMPLING_RATE)}


def _with_both(places: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return places | {"both": np.concatenate(list(places.values()), axis=1)}


def group(folders: Sequence[str]) -> dict[str, list[str]]:
    """Checkpoints by the kind of their encoder, `"calm"`, `"ast"` or `"wav2vec2"`; those of one kind are seeds."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(MODEL_TYPES.get(load_config(folder).model_type, "calm"), []).append(folder)
    return groups


class FittedProbe(NamedTuple):
    """The representation of one seed, the place it is read from, and the probe on it."""

    represent: Representation
    place: str
    probe: Probe

    def predict(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Classes (N,)."""
        return self.probe.machine.predict(self.represent(waveforms)[self.place])


def fit_system(
    seeds: Sequence[Representation], train: Clips, validation: Clips
) -> tuple[list[FittedProbe], dict[str, float]]:
    """A probe for each seed of a system, all at the place with the best mean UAR on validation.

    Returns:
        The probes, and the validation UAR of every place, mean over seeds.
    """
    probes: list[dict[str, Probe]] = []
    for represent in seeds:
        features = [represent(clips.waveforms) for clips in (train, validation)]
        probes.append(
            {
                place: fit_probe(features[0][place], train.labels, features[1][place], validation.labels)
                for place in features[0]
            }
        )
    validated = {place: float(np.mean([seed[place].validation for seed in probes])) for place in probes[0]}
    best = max(validated, key=validated.get)
    return [FittedProbe(represent, best, seed[best]) for represent, seed in zip(seeds, probes, strict=True)], validated
