"""What each rate of CALM encodes: the emotion of the voice and the words of the clip, read out by linear maps.

At every rate, a clip is a sequence. Mean and standard deviation over its real positions turn each into one vector, so
that rates differ in their content and not in their pooling:

- `patches`: the input spectrogram, 40 ms per patch by default; the patch projection is linear and would add nothing
  for a linear probe;
- `sub_tokens`: the same positions after the layers inside their window;
- `windows`: one pooled vector per window, before it sees any other window;
- `acoustic_tokens`: the same with context from the other windows, in the space of the word embeddings;
- `utterance`: the language model's states for all acoustic and, if given, lexical tokens.

Emotion is predicted by the probe of `linear_probe.py`. Words are retrieved by a ridge regression from the vector to
the text target, whose predictions rank the transcripts: also a linear map, and one that fits any rate, while only
acoustic tokens lie in the word embedding space by themselves. There the language model gets no text, which would be
the answer. Dimensions: B clips, N positions of a sequence.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

sys.path.append(str(Path(__file__).parents[1]))
from evaluate import recall_at  # noqa: E402
from linear_probe import fit_probe  # noqa: E402
from scoring import batches, embed, evaluation_collator, read_by_tokenizer  # noqa: E402

from modeling_calm import CalmForPreTraining  # noqa: E402
from modeling_calm.spectran_calm import mean_and_deviation  # noqa: E402
from processing import CalmProcessor  # noqa: E402
from processing.bootstrap import bootstrap_interval, paired_bootstrap  # noqa: E402
from processing.metrics import unweighted_average_recall  # noqa: E402
from processing.retrieval import audio_text_ranks  # noqa: E402

RATES = ("patches", "sub_tokens", "windows", "acoustic_tokens", "utterance")
RIDGE = 0.01  # ridge penalty; the best of 0.001 to 3 for most rates on the validation split of CMU AN4


def sequences(
    model: CalmForPreTraining, batch: dict[str, torch.Tensor], words: bool
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The clips of a batch at each rate, (B, N, width), and which positions are real, (B, N) bool.

    Args:
        words: whether the language model sees the transcripts along with the acoustic tokens.
    """
    calm, spectran = model.calm, model.calm.audio_model
    patches, real = batch["input_features"], batch["input_features_mask"].bool()
    audio = spectran(patches, real, output_hidden_states=True)
    tokens_mask = audio.acoustic_tokens_mask
    inner = audio.hidden_states[-1]  # (W, S, hidden)
    in_window = real.unflatten(1, (-1, inner.shape[1]))  # (B, T, S)
    sub_tokens = inner.new_zeros(*in_window.shape, inner.shape[-1])
    sub_tokens[tokens_mask] = inner
    windows = inner.new_zeros(*tokens_mask.shape, inner.shape[-1])
    windows[tokens_mask] = spectran.pooling(inner, in_window[tokens_mask])
    tokens = calm.project(audio.last_hidden_state, tokens_mask)
    ids, words_mask = batch["input_ids"], batch["attention_mask"].bool()
    if not words:
        ids, words_mask = ids[:, :0], words_mask[:, :0]
    states = calm.fuse(calm.get_input_embeddings()(ids), words_mask, None, tokens, tokens_mask).last_hidden_state
    return {
        "patches": (patches.masked_fill(~real.unsqueeze(-1), 0.0), real),
        "sub_tokens": (sub_tokens.flatten(1, 2), real),
        "windows": (windows, tokens_mask),
        "acoustic_tokens": (tokens, tokens_mask),
        "utterance": (states, torch.cat((words_mask, tokens_mask), dim=1)),
    }


@torch.no_grad()
def represent(
    model: CalmForPreTraining, processor: CalmProcessor, dataset: Dataset, batch_size: int, words: bool
) -> dict[str, np.ndarray]:
    """The vector of every clip at every rate, (N, 2 x width) each."""
    collator = evaluation_collator(processor)
    found = {rate: [] for rate in RATES}
    for batch in batches(model, collator, dataset, batch_size):
        for rate, sequence in sequences(model, batch, words).items():
            found[rate].append(mean_and_deviation(*sequence).float().cpu())
    return {rate: torch.cat(pieces).numpy() for rate, pieces in found.items()}


def emotion_by_rate(
    models: dict[str, CalmForPreTraining], processor: CalmProcessor, splits: dict[str, Dataset], batch_size: int
) -> dict:
    """UAR on `splits["test"]` of the probe at each rate for every model, and the gain of the last over the first.

    Args:
        models: by name, such as before and after training.
        splits: `train`, `validation` and `test`, with `label` and `text`.
    """
    labels = {split: np.asarray(dataset["label"]) for split, dataset in splits.items()}
    predictions, results = {}, {rate: {} for rate in RATES}
    for name, model in models.items():
        features = {split: represent(model, processor, data, batch_size, True) for split, data in splits.items()}
        for rate in RATES:
            probe = fit_probe(
                features["train"][rate], labels["train"], features["validation"][rate], labels["validation"]
            )
            predictions[name, rate] = probe.machine.predict(features["test"][rate])
            interval = bootstrap_interval(unweighted_average_recall, labels["test"], predictions[name, rate])
            results[rate][name] = {
                "unweighted_average_recall_interval": interval._asdict(),
                "width": features["test"][rate].shape[1],
                "c": probe.c,
            }
    first, last = list(models)[0], list(models)[-1]
    for rate, found in results.items():
        gain = paired_bootstrap(
            unweighted_average_recall, labels["test"], predictions[last, rate], predictions[first, rate]
        )
        found["gain"] = {**gain._asdict(), "above": gain.above_zero}
    return results


def words_by_rate(
    models: dict[str, CalmForPreTraining], processor: CalmProcessor, splits: dict[str, Dataset], batch_size: int
) -> dict:
    """Audio-to-text R@1 on `splits["test"]` by ridge regression from each rate to the text target."""
    texts = read_by_tokenizer(processor, list(splits["test"]["text"]))
    results = {rate: {} for rate in RATES}
    for name, model in models.items():
        train, test = (represent(model, processor, splits[split], batch_size, False) for split in ("train", "test"))
        # The word embeddings are (nearly) frozen: each model's own target is the fair one.
        targets, goal = (embed(model, processor, splits[split], batch_size) for split in ("train", "test"))
        for rate in RATES:
            answers = ridge(train[rate], targets["text_embeds"], test[rate])
            ranks = audio_text_ranks(answers, goal["text_embeds"], texts)
            interval = bootstrap_interval(recall_at(1), ranks)
            results[rate][name] = {"audio_to_text_recall@1_interval": interval._asdict()}
    return results


def ridge(features: np.ndarray, targets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Predictions (M, E) for queries (M, F) by ridge regression from features (N, F) to targets (N, E).

    Features are standardised and targets centred; it is solved in the dual form, since there are fewer clips than
    features. The penalty is `RIDGE` times the mean squared norm of a clip, so that it is comparable at every width.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-8
    features, queries = (features - mean) / deviation, (queries - mean) / deviation
    kernel = features @ features.T
    penalty = RIDGE * np.trace(kernel) / len(kernel)
    weights = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), targets - targets.mean(0))
    return queries @ features.T @ weights + targets.mean(0)
