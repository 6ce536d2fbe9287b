"""The model card of a checkpoint: the repository's `model_card.md`, filled in with its data and results."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from evaluate import as_table
from finetune import flat
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

TEMPLATE = Path(__file__).resolve().parents[1] / "model_card.md"
PLACEHOLDER = '"NAMESPACE/NAME"'
BLOCK = re.compile(r"<!-- begin (?P<name>\w+) -->\n(?P<content>.*?)<!-- end (?P=name) -->\n(?P<blank>\n?)", re.DOTALL)
HUB_NAME = r"[\w.-]+/[\w.-]+"
MODALITIES = {
    "both": "voice and words",
    "audio": "the voice alone: give it no words",
    "text": "the words alone: give it no audio",
}
INTERVALS = "\n\nIntervals are 95 % bootstrap intervals over the clips."
OTHERS = (
    " `compared` is the system that was evaluated beside it, `egemaps_svm` a linear SVM on the eGeMAPS functionals."
)

# Metrics of the evaluation entries: type in the Hub's terms, and name.
MEASURES = {
    "unweighted_average_recall": ("recall", "unweighted average recall"),
    "weighted_accuracy": ("accuracy", "weighted accuracy"),
    "macro_f1": ("f1", "macro F1"),
    "weighted_f1": ("f1", "weighted F1"),
    "ccc": ("ccc", "concordance correlation coefficient"),
    **{
        f"{key}_{measure}": (kind, f"{name}, {title}")
        for key, name in (
            ("audio_to_text", "audio to text"),
            ("text_to_audio", "text to audio"),
            ("audio_to_text_reading", "audio to text by reading"),
            ("text_to_audio_reading", "text to audio by reading"),
        )
        for measure, kind, title in (
            *((f"recall@{k}", f"recall_at_{k}", f"recall@{k}") for k in (1, 5, 10)),
            ("map@10", "map_at_10", "mean average precision@10"),
        )
    },
    "word_reading": ("word_reading", "word reading"),
}

# Options of a run that its card lists; others may contain local paths or account names.
TOLD_OPTIONS = (
    "stage", "modalities", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "text_learning_rate", "head_learning_rate", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "augment", "balance_classes", "freeze_text", "linear_probe", "fit_classifier",
    "seed",
)  # fmt: skip
# By the modalities of a classifier, what its card omits from the template's examples.
UNSEEN = {
    "both": (),
    "audio": (
        " and its words, from the voice alone, or from the words alone", ', {"text": "kids are talking by the door"}',
        ', "text": "kids are talking by the door"', ', text="kids are talking by the door"',
    ),
    "text": (
        " the voice and its words, from the voice alone, or from", " alone", '{"audio": "speech.wav"}, ',
        '"audio": "speech.wav", ', "import soundfile\nimport soxr\n", ", for a mono recording",
        "rate = processor.feature_extractor.sampling_rate\n",
        'waveform = soxr.resample(*soundfile.read("speech.wav", dtype="float32"), rate)\n', "audio=waveform, ",
        "sampling_rate=rate, ",
    ),
}  # fmt: skip


@dataclass
class Evaluation:
    """The results of one checkpoint from a results file.

    Args:
        data: data set that it was evaluated on.
        split: split of the data set.
        figures: the checkpoint's own metrics, by name.
        table: all results as Markdown.
    """

    data: str
    split: str
    figures: dict[str, float]
    table: str


def read_results(file: Path, weights: str, data: str | None = None) -> Evaluation:
    """Results of finetune.py, pretrain.py (`results.json`) or evaluate.py (`evaluation.json`) for given weights.

    Args:
        weights: their digest, from `options.weights_digest`.
        data: name of the data; by default that of the data set.

    Raises:
        ValueError: if the file is missing, was not written by these scripts, or belongs to other weights.
    """
    if not file.is_file():
        raise ValueError(f"There are no results in '{file}'. Write them with examples/evaluate.py, and name its file.")
    try:
        report = json.loads(file.read_text())
        digests = report["weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' is no results file of the scripts in examples/. Write it anew.") from error
    of_run = isinstance(digests, str)
    if weights not in ([digests] if of_run else digests.values()):
        raise ValueError(
            f"The results in '{file}' are those of another model, or of this one before it was trained anew. Evaluate"
            " the model to publish with examples/evaluate.py."
        )
    if of_run:
        split = "test" if "test" in report else "validation"
        own = {name.removeprefix("eval_"): value for name, value in flat(report[split]).items()}
        own = {name: value for name, value in own.items() if is_measure(name) or name.startswith("num_")}
        return Evaluation(data or data_name(run_options(file.parent).get("dataset")), split, own, as_table(own))
    results, models = report["results"], report["arguments"]["models"]
    own = results["seeds"][[digests.get(model) for model in models].index(weights)]
    table = as_table(results)
    if len(models) > 1:
        table = f"{as_table(own)}\n\nMeans over {len(models)} trainings that differ in their seed:\n\n{table}"
    table += (INTERVALS if "_interval" in table else "") + (OTHERS if "gain over" in table else "")
    return Evaluation(data or data_name(report["dataset"]), report["arguments"]["split"], flat(own), table)


def data_name(dataset: str | None) -> str:
    """What a card calls a data set: its name on the Hub, or the last part of its path."""
    dataset = dataset or "data of its own"
    return dataset if re.fullmatch(HUB_NAME, dataset) and not Path(dataset).exists() else Path(dataset).name


def is_measure(name: str) -> bool:
    """Whether a value is a metric, not a count or a time."""
    return name in MEASURES or name.startswith("ccc_")


def run_options(folder: Path) -> dict:
    """The options of the run that a checkpoint comes from; empty if the folder belongs to no run."""
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    return yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}


def evaluation_entries(evaluations: list[Evaluation], task: str) -> list[EvalResult]:
    """The metrics in the Hub's metadata format."""
    entries = []
    for evaluation in evaluations:
        for name, value in evaluation.figures.items():
            if is_measure(name):
                kind, title = MEASURES.get(name, ("ccc", name.replace("ccc_", "CCC of ")))
                entries.append(
                    EvalResult(
                        task_type=task,
                        dataset_type=re.sub(r"[^\w./-]+", "-", evaluation.data),
                        dataset_name=evaluation.data,
                        dataset_split=evaluation.split,
                        metric_type=kind,
                        metric_name=title,
                        metric_value=round(value, 4),
                    )
                )
    return entries


def describe(model: PreTrainedModel, folder: Path, base_model: str | None) -> str:
    """The checkpoint in a few lines: class, size, language model, labels, options of its run."""
    audio, text, options = model.config.audio_config, model.config.text_config, run_options(folder)
    spectran = sum(value.numel() for name, value in model.named_parameters() if "audio_model." in name)
    lines = [
        f"- `{type(model).__name__}`: {model.num_parameters():,} parameters, {spectran:,} of them SpecTran's",
        f"- language model: {base_model or 'one'} of the type `{text.model_type}`",
        f"- an acoustic token every {audio.seconds_per_token:g} s of audio at {audio.sampling_rate} Hz",
    ]
    if is_classifier(model):
        problem = (model.config.problem_type or "single_label_classification").replace("_", " ")
        lines.append(f"- {problem}: {', '.join(model.config.id2label.values())}")
        lines.append(f"- trained on {MODALITIES[model.config.modalities]}")
    options = {name: value for name, value in options.items() if name in TOLD_OPTIONS}
    if options:
        lines.append("- options of the training: " + ", ".join(f"`{name}: {v}`" for name, v in options.items()))
    return "\n".join(lines)


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a checkpoint has a classification head."""
    return "SequenceClassification" in type(model).__name__


def way_of_use(template: str, modalities: str) -> str:
    """The template's classification examples, without the modality that the classifier was not trained on."""
    (content,) = (match["content"] for match in BLOCK.finditer(template) if match["name"] == "classification")
    for unseen in UNSEEN[modalities]:
        content = content.replace(unseen, "")
    return content


def fill(text: str, blocks: dict[str, str | None]) -> str:
    """Replace the text between `<!-- begin name -->` and `<!-- end name -->`; `None` keeps it, without the markers.

    Raises:
        KeyError: if `blocks` lacks a block of the text.
    """

    def replace(match: re.Match) -> str:
        content = match["content"] if blocks[match["name"]] is None else blocks[match["name"]]
        return content and f"{content.rstrip()}\n{match['blank']}"

    return BLOCK.sub(replace, text)


def model_card(
    model: PreTrainedModel,
    folder: Path,
    repo_id: str,
    license: str,
    training_data: dict[str, str],
    evaluations: list[Evaluation],
    language: list[str] | None = None,
    base_model: str | None = None,
    revision: str | None = None,
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        model: the model to publish.
        folder: the run it comes from.
        repo_id: its repository on the Hub.
        license: of the weights, as a Hub identifier.
        training_data: licences by name of the data.
        evaluations: the results; if empty, the card says so.
        language: codes of its languages.
        base_model: Hub name of the language model it started from.
        revision: its branch, if it is not the main one.
    """
    template = ModelCard(TEMPLATE.read_text(encoding="utf-8"))
    task = "audio-classification" if is_classifier(model) else "feature-extraction"
    entries = evaluation_entries(evaluations, task)
    data = ModelCardData(
        model_name=repo_id.split("/")[1] if entries else None,
        library_name=template.data.library_name,
        license=license,
        language=language,
        pipeline_tag=task,
        tags=template.data.tags,
        base_model=base_model,
        datasets=[name for name in training_data if re.fullmatch(HUB_NAME, name)] or None,
        eval_results=entries or None,
    )
    rows = [f"| {name.replace('|', '/')} | {licence.replace('|', '/')} |" for name, licence in training_data.items()]
    sections = [f"On {one.data}, split {one.split}:\n\n{one.table}" for one in evaluations]
    body = fill(
        template.text,
        {
            "checkpoint": describe(model, folder, base_model),
            "classification": way_of_use(template.text, model.config.modalities) if is_classifier(model) else "",
            "embedding": "" if is_classifier(model) else None,
            "data": "\n".join(["| data | licence |", "|---|---|", *rows, "", f"These weights: `{license}`."]),
            "results": "\n\n".join(sections) or "None were given when this checkpoint was published.",
            "recipes": "",
        },
    )
    name = f'"{repo_id}"' if revision is None else f'"{repo_id}", revision="{revision}"'
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body.replace(PLACEHOLDER, name)}")
