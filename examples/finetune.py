"""Fine-tuning for emotion recognition, and for other labels or scores of an utterance.

    python examples/finetune.py --model runs/pretrain --dataset FOLDER --label_column emotion --output_dir runs/emotion

Strings and integers in one column are classes; several columns of 0 and 1 (`--label_column happy,sad`) are a
multi-label problem; one or more columns of real numbers (`--label_column valence,arousal`) are regression. Model
selection uses the validation split only.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from discriminant import fit_classifier
from options import CalmTrainingArguments, parse_arguments, start_run, write_options
from speech_data import DataArguments, read_split, refuse_long, warn_of_shared_speakers
from training import SPEC_AUGMENT, WAVEFORM_AUGMENTATION, CalmTrainer, ModelArguments
from transformers import set_seed

from modeling_calm import CalmForSequenceClassification, CalmModel
from processing import DataCollatorForCalmClassification
from processing.metrics import classification_metrics, concordance_correlation_coefficient, multilabel_metrics

MODALITIES = ("both", "audio", "text")
logger = logging.getLogger(__name__)


@dataclass
class FinetuningArguments(ModelArguments):
    """What the classifier sees and how it is trained."""

    modalities: str = field(default="both", metadata={"help": "both, audio or text.", "choices": MODALITIES})
    balance_classes: bool = field(default=False, metadata={"help": "Weigh classes by their inverse frequency."})
    regression_loss: str = field(default="ccc", metadata={"help": "mse or ccc, for labels that are real numbers."})
    freeze_text: bool = field(default=False, metadata={"help": "Keep the language model as it is."})
    linear_probe: bool = field(
        default=False, metadata={"help": "Train the classifier alone; the encoders stay, so begin with `--model`."}
    )
    fit_classifier: bool = field(
        default=False,
        metadata={
            "help": "Begin with a classifier in closed form on the encoders as they are, for single labels. With"
            " `--num_train_epochs 0` it stays."
        },
    )
    augment: bool = field(default=True, metadata={"help": "Speed, silence, bands, noise, level and SpecAugment."})


def describe_labels(train: Dataset, columns: list[str]) -> dict:
    """The settings of the model's head for the labels of the training split.

    Raises:
        ValueError: if there is only one class.
    """
    labels = list(train["label"])
    if isinstance(labels[0], (str, int)):
        problem, names = "single_label_classification", [str(label) for label in sorted(set(labels))]
        if len(names) == 1:
            raise ValueError(f"Every label of the training split is '{names[0]}'; a classifier needs two classes.")
    else:
        values = np.asarray(labels, dtype=float).reshape(len(labels), -1)
        many = values.shape[1] > 1 and np.isin(values, (0, 1)).all()
        problem = "multi_label_classification" if many else "regression"
        names = columns if len(columns) == values.shape[1] else [f"{columns[0]}_{i}" for i in range(values.shape[1])]
    return {
        "problem_type": problem,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "class_weights": None,
    }


def fit_labels(dataset: Dataset, problem_type: str, label2id: dict[str, int], split: str) -> Dataset:
    """The labels of a split as the model's head expects them: class ids, or float targets.

    Raises:
        ValueError: if they do not fit; see also [`encode_labels`].
    """
    if problem_type == "single_label_classification":
        return encode_labels(dataset, label2id, split)
    labels = list(dataset["label"])
    width = {len(label) if isinstance(label, list) else 0 if isinstance(label, str) else 1 for label in labels}
    if width != {len(label2id)}:
        raise ValueError(
            f"The model gives the {len(label2id)} numbers {sorted(label2id, key=label2id.get)}, and the labels of"
            f" split '{split}' are not as many numbers, the first being {labels[0]!r}. Name the columns with"
            " `--label_column`."
        )
    if problem_type == "multi_label_classification":
        rows = [i for i, label in enumerate(labels) if not set(label) <= {0, 1}]
        if rows:
            raise ValueError(f"Rows {rows} of split '{split}' have labels other than 0 and 1, unlike the classes.")
    return dataset


def encode_labels(dataset: Dataset, label2id: dict[str, int], split: str) -> Dataset:
    """Convert class names to ids.

    Raises:
        ValueError: lists the classes of this split that are not among those of training.
    """
    unknown = sorted({str(label) for label in dataset["label"]} - set(label2id))
    if unknown:
        raise ValueError(
            f"Split '{split}' has the labels {unknown}, which the model does not know; it knows {sorted(label2id)}."
            " Correct the labels, or train on a split that holds them."
        )
    encoded = [label2id[str(label)] for label in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", encoded)


def scores(config, logits: np.ndarray, labels: np.ndarray) -> dict:
    """The metrics of the problem, from logits (N, K) and labels (N,) or (N, K)."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    if config.problem_type == "regression":
        labels, logits = labels.reshape(len(labels), -1), logits.reshape(len(labels), -1)
        each = {
            f"ccc_{name}": concordance_correlation_coefficient(labels[:, i], logits[:, i])
            for i, name in enumerate(names)
        }
        return {"ccc": float(np.mean(list(each.values()))), **each}
    if config.problem_type == "multi_label_classification":
        return multilabel_metrics(labels.astype(int), (logits > 0).astype(int), names)
    return classification_metrics(labels, logits.argmax(-1), names)


def best_metric(problem_type: str) -> str:
    """The metric for checkpoint selection."""
    return {"regression": "ccc", "multi_label_classification": "weighted_f1"}.get(
        problem_type, "unweighted_average_recall"
    )


def main(argv: list[str] | None = None) -> dict:
    arguments, data, training = parse_arguments(
        FinetuningArguments, DataArguments, CalmTrainingArguments, arguments=argv, defaults=DEFAULTS
    )
    logging.basicConfig(level=logging.INFO if training.should_log else logging.WARNING)
    training.remove_unused_columns, training.label_names = False, ["labels"]
    checkpoint = start_run(training)
    set_seed(training.seed)
    text = arguments.modalities != "audio"
    processor = arguments.load_processor()
    rate = processor.feature_extractor.sampling_rate
    with training.main_process_first(desc="reading the audio"):
        train, validation, test = (
            read_split(data, split, rate, text=text, label=True)
            for split in (data.train_split, data.validation_split, data.test_split)
        )
    warn_of_shared_speakers({data.train_split: train, data.validation_split: validation, data.test_split: test})
    head = describe_labels(train, data.label_columns())
    train, validation, test = (
        fit_labels(dataset, head["problem_type"], head["label2id"], split)
        for dataset, split in (
            (train, data.train_split), (validation, data.validation_split), (test, data.test_split),
        )
    )  # fmt: skip
    for_classes = [f"--{name}" for name in ("balance_classes", "fit_classifier") if getattr(arguments, name)]
    if for_classes and head["problem_type"] != "single_label_classification":
        raise ValueError(
            f"`{' '.join(for_classes)}` is for classes, one an utterance; '{data.label_column}' is a"
            f" {head['problem_type'].replace('_', ' ')} problem. Set it to false, and train by `--num_train_epochs`."
        )
    if head["problem_type"] == "regression" and arguments.regression_loss == "ccc" and training.train_batch_size == 1:
        raise ValueError(
            "One clip has no concordance to learn from: raise `--per_device_train_batch_size`, or choose"
            " `--regression_loss mse`."
        )
    if arguments.balance_classes:
        counts = np.bincount(train["label"])
        head["class_weights"] = [float(weight) for weight in len(train) / (len(counts) * counts)]
    if not (arguments.fit_classifier or training.num_train_epochs or training.max_steps > 0):
        raise ValueError("With `--num_train_epochs 0` nothing is trained: fit the classifier (`--fit_classifier`).")
    if (arguments.linear_probe or arguments.fit_classifier) and arguments.model is None:
        logger.warning("Without `--model` the classifier is fitted to a SpecTran that was never trained.")
    settings = {"modalities": arguments.modalities, "regression_loss": arguments.regression_loss, **head}
    model = arguments.load_model(CalmForSequenceClassification, **settings)
    freeze(model.calm, arguments)
    if arguments.modalities == "text":
        train, validation, test = (d.remove_columns("audio").with_format(None) for d in (train, validation, test))
    else:
        for dataset, split, augmentation in (
            (train, data.train_split, WAVEFORM_AUGMENTATION if arguments.augment else None),
            (validation, data.validation_split, None), (test, data.test_split, None),
        ):  # fmt: skip
            refuse_long(dataset, split, processor, model.calm.max_tokens(), augmentation)

    if training.metric_for_best_model == "loss":  # the library's default if none is given
        training.metric_for_best_model, training.greater_is_better = best_metric(model.config.problem_type), True
    trainer = CalmTrainer(
        model=model,
        args=training,
        data_collator=DataCollatorForCalmClassification(
            processor,
            waveform_augmentation=WAVEFORM_AUGMENTATION if arguments.augment else None,
            spec_augment=SPEC_AUGMENT if arguments.augment else None,
        ),
        eval_collator=DataCollatorForCalmClassification(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=lambda p: flat(scores(model.config, p.predictions, p.label_ids)),
    )
    write_options(training, DEFAULTS, arguments, data)
    if arguments.fit_classifier and checkpoint is None:
        # From audio alone, the language model knows nothing that SpecTran does not.
        first = model.config.hidden_size if arguments.modalities == "audio" else 0
        fit_classifier(trainer, slice(first, None), arguments.balance_classes)
    trainer.train(resume_from_checkpoint=checkpoint)
    results = {"modalities": arguments.modalities}
    for split, dataset in (("validation", validation), ("test", test)):
        prediction = trainer.predict(dataset, metric_key_prefix=split)
        results[split] = scores(model.config, prediction.predictions, prediction.label_ids)
    trainer.finish(results)
    return results


def freeze(model: CalmModel, arguments: FinetuningArguments) -> None:
    """Freeze what should not change, and unused parameters, on which distributed training would fail."""
    model.get_input_embeddings().requires_grad_(False)  # the acoustic tokens are aligned with these very embeddings
    model.audio_model.mask_embedding.requires_grad_(False)
    if arguments.modalities == "text":
        model.audio_model.requires_grad_(False)
        model.audio_projection.requires_grad_(False)
    if arguments.freeze_text:
        model.text_model.requires_grad_(False)
    if arguments.linear_probe:
        model.requires_grad_(False)


def flat(values: dict) -> dict[str, float]:
    """The scalar metrics, for the log."""
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


DEFAULTS = {
    "output_dir": "runs/finetune", "num_train_epochs": 20, "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32, "learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
    "weight_decay": 0.01, "max_grad_norm": 1.0, "logging_steps": 10, "eval_strategy": "epoch",
    "save_strategy": "epoch", "save_total_limit": 1, "load_best_model_at_end": True,
    "dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_pin_memory": False,
    "length_column_name": "duration",
}  # fmt: skip


if __name__ == "__main__":
    main()
