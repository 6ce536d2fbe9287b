"""Evaluate checkpoints on a split: retrieval, geometry and word reading, or emotion recognition with its baselines.

    python examples/evaluate.py --models runs/commands --dataset FOLDER
    python examples/evaluate.py --models runs/emotion/calm-* --compare_models runs/emotion/scratch-* --egemaps \
        --dataset FOLDER

Several `--models` are seeds of one system: results are means over them, with a 95 % bootstrap interval over the clips.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from finetune import best_metric, encode_labels, fit_labels, flat, scores
from linear_probe import egemaps_functionals, fit_probe
from options import parse_arguments, weights_digest, write_json
from scoring import (
    checkpoint_kind,
    classify,
    count_words,
    embed,
    load_checkpoint,
    read_by_tokenizer,
    read_transcripts,
    word_reading,
)
from speech_data import DataArguments, read_split
from transformers import PreTrainedConfig

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification
from processing import CalmProcessor
from processing.bootstrap import bootstrap_interval, paired_bootstrap
from processing.metrics import unweighted_average_recall
from processing.retrieval import (
    alignment,
    audio_text_ranks,
    audio_text_retrieval,
    both_directions,
    modality_gap,
    retrieval_ranks,
    uniformity,
)

logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments:
    """What is evaluated, and against what."""

    models: list[str] = field(default_factory=list, metadata={"help": "Runs or Hub names; seeds of one system."})
    compare_models: list[str] = field(default_factory=list, metadata={"help": "Seeds of the system to compare with."})
    egemaps: bool = field(default=False, metadata={"help": "Add the baseline eGeMAPS + linear SVM."})
    split: str | None = field(default=None, metadata={"help": "Split to evaluate on; by default the test split."})
    modalities: str | None = field(default=None, metadata={"help": "both, audio or text; by default as trained."})
    chunk_length_s: float | None = field(
        default=None, metadata={"help": "Classify longer recordings in chunks of at most this many seconds."}
    )
    batch_size: int = field(default=32, metadata={"help": "Clips at once."})
    output: str | None = field(default=None, metadata={"help": "JSON file; by default evaluation.json in the run."})


def over_seeds(each: list[dict]) -> dict[str, float]:
    """The mean of every number over the seeds; a count on which all agree stays an integer."""
    return {
        name: value if all(one[name] == value for one in each) else float(np.mean([one[name] for one in each]))
        for name, value in flat(each[0]).items()
    }


@dataclass
class AlignedSpace:
    """The results of one model on the N clips of a split.

    Args:
        scores: retrieval in both directions by the cosine of embeddings, and by reading if the model was trained to
            read; geometry of the aligned space; word reading.
        ranks: of each clip's transcript, by cosine, (N,).
        reading_ranks: the same by `CalmForPreTraining.score_transcripts`, which sees every word, or `None`.
        words: the counts of [`count_words`], (N, 3).
    """

    scores: dict[str, float]
    ranks: np.ndarray
    reading_ranks: np.ndarray | None
    words: np.ndarray


def measure_space(
    model: CalmForPreTraining, processor: CalmProcessor, dataset: Dataset, batch_size: int
) -> AlignedSpace:
    """Run a model over a split and measure how audio and text agree."""
    embeds, texts = embed(model, processor, dataset, batch_size), read_by_tokenizer(processor, list(dataset["text"]))
    audio, text = embeds["audio_embeds"], embeds["text_embeds"]
    words = count_words(model, processor, dataset, batch_size)
    scores = {
        **audio_text_retrieval(audio, text, texts),
        "alignment": alignment(audio, text),
        "uniformity_audio": uniformity(audio),
        "uniformity_text": uniformity(text),
        "modality_gap": modality_gap(audio, text),
        **word_reading(words),
    }
    reading_ranks = None
    if model.config.transcript_loss_weight:
        similarity, said = read_transcripts(model, processor, dataset, list(dataset["text"]), batch_size)
        reading_ranks = retrieval_ranks(similarity, said)
        scores |= both_directions(similarity, said, "reading_")
    return AlignedSpace(scores, audio_text_ranks(audio, text, texts), reading_ranks, words)


def recall_at(k: int) -> Callable[[np.ndarray], float]:
    """Recall@k of ranks of any shape, as a metric for bootstrap intervals."""
    return lambda ranks: float((ranks <= k).mean())


def evaluate_alignment(arguments: EvaluationArguments, data: DataArguments) -> dict:
    """Retrieval, geometry and word reading: means over seeds; intervals for audio-to-text recall and word reading.

    Raises:
        ValueError: for options of classifiers, which would otherwise be ignored.
    """
    options = ("compare_models", "egemaps", "modalities", "chunk_length_s")
    if given := [f"--{name}" for name in options if getattr(arguments, name)]:
        raise ValueError(f"'{arguments.models[0]}' is no classifier: leave out {' and '.join(given)}.")
    each = []
    for folder in arguments.models:
        model, processor = load_checkpoint(folder, CalmForPreTraining)
        dataset = read_split(data, arguments.split, processor.feature_extractor.sampling_rate)
        each.append(measure_space(model, processor, dataset, arguments.batch_size))
    ranks = np.stack([one.ranks for one in each], axis=1)  # (N, seeds): a clip is resampled with all its seeds
    results = over_seeds([one.scores for one in each])
    read = [one.reading_ranks for one in each if one.reading_ranks is not None]
    for k in (1, 5, 10):
        results[f"audio_to_text_recall@{k}_interval"] = bootstrap_interval(recall_at(k), ranks)._asdict()
        if len(read) == len(each):
            interval = bootstrap_interval(recall_at(k), np.stack(read, axis=1))
            results[f"audio_to_text_reading_recall@{k}_interval"] = interval._asdict()
    words = np.stack([one.words for one in each], axis=1)  # (N, seeds, 3)
    results["word_reading_interval"] = bootstrap_interval(share_of_tokens, words)._asdict()
    return {**results, "seeds": [one.scores for one in each]}


def share_of_tokens(words: np.ndarray) -> float:
    """Word reading from counts (N, 3), or its mean over seeds from (N, seeds, 3): a metric for bootstrap intervals."""
    total = words.sum(axis=0)
    return float(np.mean(total[..., 1] / total[..., 0]))


def classify_with(
    folders: list[str], arguments: EvaluationArguments, data: DataArguments, label2id: dict[str, int] | None = None
) -> tuple:
    """Logits of every seed (S, N, K), labels (N,) or (N, K), and the configuration of the last one.

    Args:
        label2id: the classes and their order; by default those of the first checkpoint.

    Raises:
        ValueError: if a checkpoint is not a classifier, or has other classes, so that its logits mean something else.
    """
    all_logits = []
    for folder in folders:
        model, processor = load_checkpoint(folder, CalmForSequenceClassification)
        label2id = label2id or model.config.label2id
        if model.config.label2id != label2id:
            raise ValueError(
                f"'{folder}' tells {list(model.config.label2id)}, and the others {list(label2id)}; evaluate together"
                " what was trained on the same labels."
            )
        modalities = arguments.modalities or model.config.modalities
        rate = processor.feature_extractor.sampling_rate
        dataset = read_split(data, arguments.split, rate, text=modalities != "audio", label=True)
        dataset = fit_labels(dataset, model.config.problem_type, label2id, arguments.split)
        all_logits.append(
            classify(model, processor, dataset, arguments.batch_size, modalities, arguments.chunk_length_s)
        )
    return np.stack(all_logits), np.asarray(dataset["label"]), model.config


def egemaps_predictions(data: DataArguments, split: str, label2id: dict[str, int]) -> np.ndarray:
    """Predictions of the linear probe on eGeMAPS functionals; training never sees the evaluated split."""
    features, labels = {}, {}
    for name in dict.fromkeys((data.train_split, data.validation_split, split)):
        dataset = encode_labels(read_split(data, name, 16000, text=False, label=True), label2id, name)
        features[name] = egemaps_functionals((row["audio"] for row in dataset), 16000)
        labels[name] = np.asarray(dataset["label"])
    train, validation = data.train_split, data.validation_split
    probe = fit_probe(features[train], labels[train], features[validation], labels[validation])
    logger.info("eGeMAPS + linear SVM: C = %g, UAR %.3f on validation", probe.c, probe.validation)
    return probe.machine.predict(features[split])


def evaluate_classifiers(arguments: EvaluationArguments, data: DataArguments) -> dict:
    """The metrics of the problem, as means over seeds; the main one with its interval, and paired comparisons."""
    logits, labels, config = classify_with(arguments.models, arguments, data)
    each = [scores(config, one, labels) for one in logits]
    results = {**over_seeds(each), "seeds": each}
    name, metric, answer = interval_metric(config)
    if config.problem_type != "single_label_classification":
        labels = labels.reshape(len(labels), -1)  # (N, K), like the logits
    answers = answer(logits)
    results[f"{name}_interval"] = bootstrap_interval(metric, labels, answers)._asdict()
    others = {}
    if arguments.compare_models:
        compared, _, _ = classify_with(arguments.compare_models, arguments, data, config.label2id)
        others["compared"] = answer(compared)
    if arguments.egemaps:
        if config.problem_type != "single_label_classification":
            raise ValueError("`--egemaps` tells classes, one an utterance; leave it out.")
        others["egemaps_svm"] = egemaps_predictions(data, arguments.split, config.label2id)
    for system, other in others.items():
        difference = paired_bootstrap(metric, labels, answers, other)
        results[system] = {
            f"{name}_interval": bootstrap_interval(metric, labels, other)._asdict(),
            "difference": difference._asdict(),
            "above": difference.above_zero,
        }
    return results


def interval_metric(config: PreTrainedConfig) -> tuple[str, Callable, Callable]:
    """The metric for checkpoint selection: name, function of labels and answers, function from logits to answers."""
    name = best_metric(config.problem_type)
    if config.problem_type == "single_label_classification":
        return name, unweighted_average_recall, lambda logits: logits.argmax(-1)
    # Scores of several targets, or thresholded labels: `scores` derives both from the logits.
    return name, lambda labels, logits: scores(config, logits, labels)[name], lambda logits: logits


def as_table(results: dict) -> str:
    """The results of one evaluation as a Markdown table."""
    lines = ["| measure | value |", "|---|---|"]
    for name, value in results.items():
        if name.endswith("_interval"):
            lines.append(f"| {name} | {value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}] |")
        elif isinstance(value, dict) and "difference" in value:
            (measure,) = (key for key in value if key.endswith("_interval"))
            found, gain = value[measure], value["difference"]
            lines.append(
                f"| {name}: {measure.removesuffix('_interval')} |"
                f" {found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}] |"
            )
            lines.append(
                f"| gain over {name} | {gain['estimate']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
                f" ({'above' if value['above'] else 'not above'}) |"
            )
        elif isinstance(value, (int, float)):
            lines.append(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(EvaluationArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    if not arguments.models:
        raise ValueError("Name at least one checkpoint with `--models`.")
    if arguments.output is None and not Path(arguments.models[0]).is_dir():
        raise ValueError(f"Name a JSON file by `--output`: '{arguments.models[0]}' is no folder to write one into.")
    arguments.split = arguments.split or data.test_split
    pretrained = checkpoint_kind(arguments.models[0]) == CalmForPreTraining.__name__
    results = (evaluate_alignment if pretrained else evaluate_classifiers)(arguments, data)
    weights = {model: weights_digest(model) for model in arguments.models if Path(model).is_dir()}
    report = {"arguments": asdict(arguments), "dataset": data.dataset, "weights": weights, "results": results}
    write_json(Path(arguments.output or Path(arguments.models[0]) / "evaluation.json"), report)
    print(as_table(results))
    return results


if __name__ == "__main__":
    main()
